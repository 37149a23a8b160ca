#include "module.hpp"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

namespace ptx {

void fail(const std::string& message) {
    std::fprintf(stderr, "ptx: %s\n", message.c_str());
    std::fflush(nullptr);
    // No destructors: other threads of a program under test may still run.
    std::_Exit(3);
}

namespace {

bool name_character(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.'; }

std::string trim(const std::string& text) {
    const size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

std::vector<std::string> split(const std::string& text, char by) {
    std::vector<std::string> parts(1);
    int depth = 0;
    for (char c : text) {
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
        if (c == by && depth == 0) parts.emplace_back();
        else parts.back() += c;
    }
    for (auto& part : parts) part = trim(part);
    return parts;
}

std::string without_comments(const std::string& text) {
    std::string kept;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text.compare(i, 2, "//") == 0) {
            i = text.find('\n', i);
            if (i == std::string::npos) break;
        } else if (text.compare(i, 2, "/*") == 0) {
            i = text.find("*/", i) + 1;
            continue;
        }
        kept += text[i];
    }
    return kept;
}

bool parse_type(const std::string& word, Type& type) {
    static const std::map<std::string, Type> types = {
        {"b8", {Type::BITS, 1}}, {"b16", {Type::BITS, 2}}, {"b32", {Type::BITS, 4}}, {"b64", {Type::BITS, 8}},
        {"u8", {Type::UNSIGNED, 1}}, {"u16", {Type::UNSIGNED, 2}}, {"u32", {Type::UNSIGNED, 4}}, {"u64", {Type::UNSIGNED, 8}},
        {"s8", {Type::SIGNED, 1}}, {"s16", {Type::SIGNED, 2}}, {"s32", {Type::SIGNED, 4}}, {"s64", {Type::SIGNED, 8}},
        {"f32", {Type::FLOAT, 4}}, {"f64", {Type::FLOAT, 8}}, {"bf16", {Type::BF16, 2}}, {"bf16x2", {Type::BF16X2, 4}},
        {"pred", {Type::PREDICATE, 1}},
    };
    const auto found = types.find(word);
    if (found != types.end()) type = found->second;
    return found != types.end();
}

const std::map<std::string, Op> OPS = {
    {"abs", Op::ABS}, {"add", Op::ADD}, {"and", Op::AND}, {"atom", Op::ATOM}, {"red", Op::ATOM}, {"bar", Op::BAR},
    {"barrier", Op::BAR}, {"bfe", Op::BFE}, {"bfi", Op::BFI}, {"bra", Op::BRA}, {"brev", Op::BREV}, {"clz", Op::CLZ}, {"copysign", Op::COPYSIGN},
    {"cos", Op::COS}, {"cp", Op::CP_ASYNC}, {"cvt", Op::CVT}, {"cvta", Op::CVTA}, {"div", Op::DIV}, {"ex2", Op::EX2},
    {"membar", Op::FENCE}, {"fence", Op::FENCE}, {"fma", Op::FMA}, {"ld", Op::LD}, {"ldmatrix", Op::LDMATRIX},
    {"lg2", Op::LG2}, {"lop3", Op::LOP3}, {"mad", Op::MAD}, {"max", Op::MAX}, {"min", Op::MIN}, {"mma", Op::MMA},
    {"mov", Op::MOV}, {"mul", Op::MUL}, {"neg", Op::NEG}, {"not", Op::NOT}, {"or", Op::OR}, {"popc", Op::POPC},
    {"prmt", Op::PRMT}, {"rcp", Op::RCP}, {"rem", Op::REM}, {"ret", Op::RET}, {"exit", Op::RET}, {"rsqrt", Op::RSQRT},
    {"selp", Op::SELP}, {"setp", Op::SETP}, {"shf", Op::SHF}, {"shfl", Op::SHFL}, {"shl", Op::SHL}, {"shr", Op::SHR},
    {"sin", Op::SIN}, {"sqrt", Op::SQRT}, {"st", Op::ST}, {"sub", Op::SUB}, {"tanh", Op::TANH}, {"vote", Op::VOTE},
    {"xor", Op::XOR},
};

uint8_t numbered(const std::map<std::string, uint8_t>& names, const Instruction& instruction) {
    for (const auto& modifier : instruction.modifiers) {
        const auto found = names.find(modifier);
        if (found != names.end()) return found->second;
    }
    fail("unknown variant: " + instruction.text);
}

// Modifiers that a form of an instruction may have; all others are an error.
void check_modifiers(const Instruction& instruction, std::set<std::string> allowed) {
    for (const auto& modifier : instruction.modifiers) {
        if (!allowed.count(modifier)) fail("unknown modifier ." + modifier + ": " + instruction.text);
    }
}

class Parser {
public:
    Parser(const std::string& text, Module& module) : text(without_comments(text)), module(module) {}

    void run() {
        while (true) {
            skip_space();
            if (at == text.size()) return;
            if (text.compare(at, 7, ".target") == 0) {
                const size_t architecture = text.find("sm_", at);
                if (architecture == std::string::npos) fail("a target without an architecture");
                module.target = std::strtoul(&text[architecture + 3], nullptr, 10);
                at = text.find('\n', at);
            } else if (text.compare(at, 8, ".version") == 0 || text.compare(at, 13, ".address_size") == 0) {
                at = text.find('\n', at);
            } else if (text.compare(at, 8, ".visible") == 0 || text.compare(at, 6, ".entry") == 0) {
                kernel();
            } else if (text.compare(at, 7, ".extern") == 0 || text.compare(at, 7, ".shared") == 0) {
                // Of the whole module: each kernel has its own copy.
                const size_t end = text.find(';', at);
                shared_declarations.push_back(text.substr(at, end - at));
                at = end + 1;
            } else {
                fail("unknown directive: " + text.substr(at, 60));
            }
        }
    }

private:
    std::string text;
    Module& module;
    size_t at = 0;
    std::vector<std::string> shared_declarations;
    Kernel* into = nullptr;
    std::vector<std::map<std::string, uint32_t>> scopes;
    std::map<std::string, uint64_t> shared_symbols;
    std::map<std::string, uint32_t> labels;

    void skip_space() {
        while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at]))) ++at;
    }

    void declare_shared(const std::string& declaration) {
        // .extern .shared .align 16 .b8 name[]; or .shared .align 16 .b8 name[bytes]
        std::istringstream words(declaration);
        std::string word, name;
        uint32_t alignment = 1;
        Type type;
        bool external = false;
        while (words >> word) {
            if (word == ".extern") external = true;
            else if (word == ".align") words >> alignment;
            else if (word == ".shared") continue;
            else if (word[0] == '.' && parse_type(word.substr(1), type)) words >> name;
            else fail("unknown shared declaration: " + declaration);
        }
        uint32_t count = 1;
        const size_t bracket = name.find('[');
        if (bracket != std::string::npos) {
            if (name[bracket + 1] != ']') count = std::stoul(name.substr(bracket + 1));
            else if (!external) fail("shared memory without a size: " + declaration);
            name.resize(bracket);
        }
        if (external) {
            dynamic_symbols.push_back({name, alignment});
            return;
        }
        into->static_shared = (into->static_shared + alignment - 1) / alignment * alignment;
        shared_symbols[name] = into->static_shared;
        into->static_shared += count * type.bytes;
    }

    std::vector<std::pair<std::string, uint32_t>> dynamic_symbols;

    void kernel() {
        const size_t name_at = text.find(".entry", at) + 6;
        const size_t open = text.find('(', name_at);
        const size_t close = text.find(')', open);
        const size_t body = text.find('{', close);
        const std::string name = trim(text.substr(name_at, open - name_at));
        Kernel& kernel = module.kernels[name];
        kernel = {};
        kernel.name = name;
        into = &kernel;
        shared_symbols.clear();
        dynamic_symbols.clear();
        labels.clear();
        scopes.assign(1, {});
        parameters(text.substr(open + 1, close - open - 1));
        std::istringstream directives(text.substr(close + 1, body - close - 1));
        std::string word;
        while (directives >> word) {
            if (word == ".maxntid") {
                std::string rest;
                std::getline(directives, rest);
                kernel.maximum_threads = 1;
                for (const auto& side : split(rest, ',')) kernel.maximum_threads *= std::stoul(side);
            } else if (word == ".minnctapersm") {
                directives >> word;
            } else {
                fail("unknown directive of a kernel: " + word);
            }
        }
        for (const auto& declaration : shared_declarations) declare_shared(declaration);
        at = body + 1;
        statements();
        // Dynamic shared memory follows the static one.
        for (const auto& [symbol, alignment] : dynamic_symbols) {
            kernel.static_shared = (kernel.static_shared + alignment - 1) / alignment * alignment;
            shared_symbols[symbol] = kernel.static_shared;
        }
        for (auto& instruction : kernel.code) {
            for (auto& operand : instruction.operands) resolve(operand, instruction);
        }
    }

    void parameters(const std::string& list) {
        uint32_t offset = 0;
        if (trim(list).empty()) return;
        for (const auto& declaration : split(list, ',')) {
            std::istringstream words(declaration);
            std::string word, name;
            Type type;
            uint32_t alignment = 0;
            while (words >> word) {
                if (word == ".param" || word == ".ptr" || word == ".global") continue;
                if (word == ".align") words >> alignment;
                else if (word[0] == '.') { if (!parse_type(word.substr(1), type)) fail("unknown parameter: " + declaration); }
                else name = word;
            }
            uint32_t bytes = type.bytes;
            const size_t bracket = name.find('[');
            if (bracket != std::string::npos) {
                bytes *= std::stoul(name.substr(bracket + 1));
                name.resize(bracket);
                offset = (offset + alignment - 1) / alignment * alignment;
            } else {
                offset = (offset + bytes - 1) / bytes * bytes;
            }
            into->parameters.push_back({name, bytes, offset});
            offset += bytes;
        }
    }

    void statements() {
        while (true) {
            skip_space();
            if (at == text.size()) fail("a kernel without an end");
            if (text[at] == '{') {
                scopes.emplace_back();
                ++at;
            } else if (text[at] == '}') {
                scopes.pop_back();
                ++at;
                if (scopes.empty()) return;
            } else {
                size_t end = at;
                while (end < text.size() && name_character(text[end])) ++end;
                if (text[end] == ':') {
                    labels[text.substr(at, end - at)] = into->code.size();
                    at = end + 1;
                    continue;
                }
                end = text.find(';', at);
                const std::string statement = trim(text.substr(at, end - at));
                at = end + 1;
                if (statement.empty()) continue;
                if (statement[0] == '.') declaration(statement);
                else instruction(statement);
            }
        }
    }

    void declaration(const std::string& statement) {
        std::istringstream words(statement);
        std::string directive, type;
        words >> directive;
        if (directive == ".pragma") return;
        if (directive == ".shared") return declare_shared(statement);
        if (directive != ".reg") fail("unknown directive: " + statement);
        words >> type;
        std::string rest;
        std::getline(words, rest);
        for (const auto& name : split(rest, ',')) {
            const size_t angle = name.find('<');
            if (angle == std::string::npos) {
                scopes.back()[name] = into->registers++;
                continue;
            }
            const uint32_t count = std::stoul(name.substr(angle + 1));
            for (uint32_t i = 0; i < count; ++i) scopes.back()[name.substr(0, angle) + std::to_string(i)] = into->registers++;
        }
    }

    uint32_t register_named(const std::string& name) {
        for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope) {
            const auto found = scope->find(name);
            if (found != scope->end()) return found->second;
        }
        return ~0u;
    }

    Operand operand(const std::string& text) {
        Operand result;
        if (text[0] == '{') {
            result.kind = Operand::VECTOR;
            for (const auto& part : split(text.substr(1, text.size() - 2), ',')) result.parts.push_back(operand(part));
            return result;
        }
        if (text[0] == '[') {
            std::string inside = trim(text.substr(1, text.size() - 2));
            int64_t offset = 0;
            const size_t plus = inside.find('+');
            if (plus != std::string::npos) {
                offset = std::stoll(inside.substr(plus + 1), nullptr, 0);
                inside = trim(inside.substr(0, plus));
            }
            result = operand(inside);
            result.memory = true;
            result.offset = offset;
            return result;
        }
        const size_t bar = text.find('|');
        if (bar != std::string::npos) {
            result = operand(text.substr(0, bar));
            result.predicate = register_named(text.substr(bar + 1));
            if (result.predicate == ~0u) fail("unknown register: " + text);
            return result;
        }
        if (text == "_") return result;
        result.index = register_named(text);
        if (result.index != ~0u) {
            result.kind = Operand::REGISTER;
            return result;
        }
        static const std::map<std::string, uint32_t> specials = {
            {"%tid.x", TID_X}, {"%tid.y", TID_Y}, {"%tid.z", TID_Z}, {"%ntid.x", NTID_X}, {"%ntid.y", NTID_Y},
            {"%ntid.z", NTID_Z}, {"%ctaid.x", CTAID_X}, {"%ctaid.y", CTAID_Y}, {"%ctaid.z", CTAID_Z},
            {"%nctaid.x", NCTAID_X}, {"%nctaid.y", NCTAID_Y}, {"%nctaid.z", NCTAID_Z}, {"%laneid", LANE}, {"%warpid", WARP},
        };
        const auto special = specials.find(text);
        if (special != specials.end()) {
            result.kind = Operand::SPECIAL;
            result.index = special->second;
            return result;
        }
        if (text.compare(0, 2, "0f") == 0 || text.compare(0, 2, "0F") == 0 || text.compare(0, 2, "0d") == 0 || text.compare(0, 2, "0D") == 0) {
            result.kind = Operand::IMMEDIATE;
            result.value = std::stoull(text.substr(2), nullptr, 16);
            return result;
        }
        if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-') {
            result.kind = Operand::IMMEDIATE;
            result.value = text[0] == '-' ? static_cast<uint64_t>(std::stoll(text, nullptr, 0)) : std::stoull(text, nullptr, 0);
            return result;
        }
        // A label, a parameter or a shared variable: known when the kernel has been read.
        result.kind = Operand::LABEL;
        names.push_back(text);
        result.index = names.size() - 1;
        return result;
    }

    std::vector<std::string> names;

    void resolve(Operand& operand, const Instruction& instruction) {
        if (operand.kind != Operand::LABEL) return;
        const std::string& name = names[operand.index];
        if (instruction.op == Op::BRA) {
            if (!labels.count(name)) fail("unknown label: " + instruction.text);
            operand.index = labels[name];
            return;
        }
        for (const auto& parameter : into->parameters) {
            if (parameter.name == name) {
                operand.kind = Operand::PARAMETER;
                operand.index = parameter.offset;
                return;
            }
        }
        if (!shared_symbols.count(name)) fail("unknown name " + name + ": " + instruction.text);
        operand.kind = Operand::SHARED_SYMBOL;
        operand.value = shared_symbols[name];
    }

    void instruction(std::string statement) {
        Instruction made{};
        made.text = statement;
        if (statement[0] == '@') {
            size_t end = 1;
            made.guard_negated = statement[1] == '!';
            if (made.guard_negated) ++end;
            const size_t start = end;
            while (name_character(statement[end])) ++end;
            made.guard = register_named(statement.substr(start, end - start));
            if (made.guard == ~0u) fail("unknown guard: " + statement);
            statement = trim(statement.substr(end));
        }
        size_t end = 0;
        while (end < statement.size() && (name_character(statement[end]) || statement[end] == ':')) ++end;
        std::vector<std::string> words = split(statement.substr(0, end), '.');
        const std::string rest = trim(statement.substr(end));
        const auto op = OPS.find(words[0]);
        if (op == OPS.end()) fail("unknown opcode: " + made.text);
        made.op = op->second;
        for (size_t i = 1; i < words.size(); ++i) {
            Type type;
            if (parse_type(words[i], type)) {
                made.from = type;
                if (made.type.kind == Type::NONE || made.op != Op::CVT) made.type = type;
            } else {
                made.modifiers.push_back(words[i]);
            }
        }
        if (!rest.empty()) {
            for (const auto& part : split(rest, ',')) made.operands.push_back(operand(part));
        }
        shape(made);
        into->code.push_back(std::move(made));
    }

    // Reads the modifiers into fields.
    void shape(Instruction& made) {
        auto has = [&](const char* name) {
            for (const auto& modifier : made.modifiers) if (modifier == name) return true;
            return false;
        };
        made.lo = has("lo");
        made.hi = has("hi");
        made.wide = has("wide");
        made.trans = has("trans");
        made.flush = has("ftz");
        made.saturate = has("sat");
        made.to = has("to");
        if (has("global")) made.space = Space::GLOBAL;
        if (has("shared") || has("shared::cta")) made.space = Space::SHARED;
        if (has("param")) made.space = Space::PARAM;
        switch (made.op) {
            case Op::ADD: case Op::SUB: case Op::FMA: case Op::DIV: case Op::RCP: case Op::SQRT:
                check_modifiers(made, {"rn", "rm", "ftz", "approx", "full"});
                made.down = std::find(made.modifiers.begin(), made.modifiers.end(), "rm") != made.modifiers.end();
                if (made.down && (made.op != Op::FMA || made.type.bytes != 4)) fail("unknown rounding: " + made.text);
                if (made.type.kind != Type::FLOAT && !made.modifiers.empty()) fail("unknown variant: " + made.text);
                break;
            case Op::COPYSIGN: check_modifiers(made, {}); break;
            case Op::MUL: case Op::MAD: check_modifiers(made, {"rn", "ftz", "lo", "hi", "wide"}); break;
            case Op::EX2: case Op::LG2: case Op::RSQRT: case Op::TANH: case Op::SIN: case Op::COS:
                check_modifiers(made, {"approx", "ftz"});
                break;
            case Op::MAX: case Op::MIN: case Op::NEG: case Op::ABS: check_modifiers(made, {"ftz"}); break;
            case Op::AND: case Op::OR: case Op::XOR: case Op::NOT: case Op::SHL: case Op::SHR: case Op::SELP: case Op::MOV:
            case Op::POPC: case Op::CLZ: case Op::BREV: case Op::BFE: case Op::BFI: case Op::PRMT: case Op::REM: case Op::LOP3:
            case Op::RET:
                check_modifiers(made, {});
                break;
            case Op::BRA: check_modifiers(made, {"uni"}); break;
            case Op::SHF:
                check_modifiers(made, {"l", "r", "wrap", "clamp"});
                made.choice = (has("r") ? 1 : 0) + (has("clamp") ? 2 : 0);
                break;
            case Op::CVTA: check_modifiers(made, {"to", "global", "shared"}); break;
            case Op::SETP:
                check_modifiers(made, {"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
                                       "gtu", "geu", "num", "nan", "ftz"});
                made.choice = numbered({{"eq", EQ}, {"ne", NE}, {"lt", LT}, {"le", LE}, {"gt", GT}, {"ge", GE}, {"lo", LT},
                                        {"ls", LE}, {"hi", GT}, {"hs", GE}, {"equ", EQU}, {"neu", NEU}, {"ltu", LTU},
                                        {"leu", LEU}, {"gtu", GTU}, {"geu", GEU}, {"num", NUM}, {"nan", NAN_}}, made);
                break;
            case Op::CVT:
                check_modifiers(made, {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "sat", "ftz"});
                for (const auto& modifier : made.modifiers) {
                    static const std::map<std::string, uint8_t> roundings = {
                        {"rn", NEAREST}, {"rz", ZERO}, {"rm", DOWN_}, {"rp", UP_}, {"rni", NEAREST_INTEGER},
                        {"rzi", ZERO_INTEGER}, {"rmi", FLOOR_INTEGER}, {"rpi", CEIL_INTEGER}};
                    if (roundings.count(modifier)) made.choice = roundings.at(modifier);
                }
                break;
            case Op::LD: case Op::ST:
                check_modifiers(made, {"global", "shared", "shared::cta", "param", "nc", "volatile", "v2", "v4", "ca", "cg", "cs",
                                       "relaxed", "gpu", "weak"});
                made.width = has("v4") ? 4 : has("v2") ? 2 : 1;
                break;
            case Op::ATOM:
                check_modifiers(made, {"global", "shared", "add", "min", "max", "or", "exch", "relaxed", "gpu", "cta"});
                made.choice = numbered({{"add", ATOMIC_ADD}, {"min", ATOMIC_MIN}, {"max", ATOMIC_MAX}, {"or", ATOMIC_OR},
                                        {"exch", ATOMIC_EXCHANGE}}, made);
                break;
            case Op::SHFL:
                check_modifiers(made, {"sync", "up", "down", "bfly", "idx"});
                made.choice = numbered({{"up", UP}, {"down", DOWN}, {"bfly", BUTTERFLY}, {"idx", INDEX}}, made);
                break;
            case Op::VOTE:
                check_modifiers(made, {"sync", "ballot", "any", "all"});
                made.choice = numbered({{"ballot", 0}, {"any", 1}, {"all", 2}}, made);
                break;
            case Op::BAR:
                if (has("warp")) {
                    check_modifiers(made, {"warp", "sync"});
                    made.op = Op::WARP_SYNC;
                } else {
                    check_modifiers(made, {"sync", "cta", "aligned"});
                    if (made.operands.size() != 1 || made.operands[0].kind != Operand::IMMEDIATE || made.operands[0].value != 0)
                        fail("only barrier 0 of all threads: " + made.text);
                }
                break;
            case Op::FENCE: break;
            case Op::LDMATRIX:
                check_modifiers(made, {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"});
                made.width = has("x4") ? 4 : has("x2") ? 2 : 1;
                break;
            case Op::MMA:
                check_modifiers(made, {"sync", "aligned", "m16n8k16", "row", "col"});
                if (made.text.find("m16n8k16.row.col.f32.bf16.bf16.f32") == std::string::npos) fail("unknown product: " + made.text);
                break;
            case Op::CP_ASYNC:
                if (has("commit_group")) {
                    made.op = Op::CP_ASYNC_COMMIT;
                } else if (has("wait_group") || has("wait_all")) {
                    made.op = Op::CP_ASYNC_WAIT;
                    made.all = has("wait_all");
                    made.choice = made.all ? 0 : made.operands[0].value;
                } else {
                    check_modifiers(made, {"async", "cg", "ca", "shared", "shared::cta", "global", "L2::128B", "L2::256B"});
                }
                break;
            default: fail("unknown opcode: " + made.text);
        }
    }
};

}  // namespace

Module Module::load(const std::string& path) {
    std::ifstream file(path);
    if (!file) fail("cannot read " + path);
    std::ostringstream text;
    text << file.rdbuf();
    return parse(text.str());
}

Module Module::parse(const std::string& text) {
    Module module;
    Parser(text, module).run();
    return module;
}

}  // namespace ptx
