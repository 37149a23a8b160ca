// The PTX of kernels/rows.cu: rows are copied, so every bit is compared.
//
//     rows PTX_FILE SHAPES SEED

#include "check.hpp"

int main(int count, char** arguments) {
    if (count != 4) return std::fprintf(stderr, "usage: rows PTX_FILE SHAPES SEED\n"), 2;
    const ptx::Module module = ptx::Module::load(arguments[1]);
    ptx::Machine machine(module);
    const int shapes = std::atoi(arguments[2]), seed = std::atoi(arguments[3]);
    static const int widths[] = {1, 3, 4, 63, 64, 130, 512, 516, 577, 1024, 4096};
    size_t elements = 0;
    for (int index = 0; index < shapes; ++index) {
        Random random(seed * 1000003ull + index);
        const int columns = widths[index % 11], known = random.between(1, 12), rows = random.between(1, 9);
        std::vector<uint16_t> table(static_cast<size_t>(known) * columns);
        std::vector<float> x(table.size());
        // Any bits: what is not a number is copied too.
        for (uint16_t& value : table) value = static_cast<uint16_t>(random.between(0, 0xffff));
        for (float& value : x) value = random.chance(0.01) ? NAN : random.normal();
        std::vector<uint32_t> ids(rows);
        for (uint32_t& id : ids) id = random.between(0, known - 1);
        const std::vector<int> chosen(ids.begin(), ids.end());
        for (ptx::Schedule schedule : {ptx::Schedule::FORWARD, ptx::Schedule::BACKWARD, ptx::Schedule::SHUFFLED}) {
            std::vector<float> embedded(static_cast<size_t>(rows) * columns, 0.5f), gathered(embedded);
            machine.forget();
            allow(machine, table), allow(machine, x), allow(machine, ids), allow(machine, chosen), allow(machine, embedded), allow(machine, gathered);
            machine.launch("embed_rows", rows, 1, 128, 0, {embedded.data(), table.data(), ids.data(), columns}, schedule);
            machine.launch("gather_rows", rows, 1, 128, 0, {gathered.data(), x.data(), chosen.data(), columns}, schedule);
            for (int row = 0; row < rows; ++row) {
                for (int column = 0; column < columns; ++column) {
                    const size_t to = static_cast<size_t>(row) * columns + column, from = static_cast<size_t>(ids[row]) * columns + column;
                    const float expected = from_bf16(table[from]);
                    if (std::memcmp(&embedded[to], &expected, 4) != 0 || std::memcmp(&gathered[to], &x[from], 4) != 0)
                        wrong("shape " + std::to_string(index) + ": row " + std::to_string(row) + " column " + std::to_string(column));
                    ++elements;
                }
            }
        }
    }
    std::printf("rows: %d shapes, %zu elements, all bits right; %.3g instructions\n", shapes, elements, static_cast<double>(machine.steps));
}
