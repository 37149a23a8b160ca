// Random prefix trees, for the tests of attention.
#pragma once

#include "check.hpp"

struct Shape {
    int head_dim, group, key_value_heads, window;
    float scale, soft_cap, spread;
};

// Tokens from the root on; a token's queries, keys and values are functions of its number.
using Text = std::vector<uint64_t>;

struct Segment {
    int parent;
    int first_position;
    std::vector<uint64_t> tokens;
    int row = 0;
};

using Forest = std::vector<Segment>;

struct Tile { int row, queries, position, path; };
struct Stretch { int row, position; };

inline float value_of(const Shape& shape, uint64_t token, int which, int channel) {
    uint64_t x = token * 0x9e3779b97f4a7c15u + which * 0xbf58476d1ce4e5b9u + channel * 0x94d049bb133111ebu;
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) {
        x ^= x >> 31, x *= 0xd6e8feb86659fd93u, x ^= x >> 29;
        sum += static_cast<float>(x >> 40) * 0x1p-24f - 0.5f;
    }
    return which < 2 ? sum * shape.spread : sum;
}

// Positions 0 to `position` of a segment's path, as (segment, index in it).
inline Text text_through(const Forest& forest, int segment) {
    std::vector<int> path;
    for (int s = segment; s >= 0; s = forest[s].parent) path.push_back(s);
    Text text;
    for (auto s = path.rbegin(); s != path.rend(); ++s) text.insert(text.end(), forest[*s].tokens.begin(), forest[*s].tokens.end());
    return text;
}

// Segments of at most `most` tokens.
inline Forest grow(Random& random, int most = 129) {
    // Lengths around the ends of key blocks, and of one token, are the ones that matter.
    auto length = [&] {
        static const int edges[] = {1, 2, 15, 16, 17, 31, 48, 63, 64, 65, 100, 127, 128, 129};
        for (;;) {
            const int drawn = random.chance(0.6) ? edges[random.between(0, random.chance(0.3) ? 13 : 9)] : random.between(1, 90);
            if (drawn <= most) return drawn;
        }
    };
    Forest forest;
    uint64_t token = random.engine() >> 8;
    auto add = [&](int parent) {
        const int first = parent < 0 ? 0 : forest[parent].first_position + static_cast<int>(forest[parent].tokens.size());
        Segment segment{parent, first, {}};
        for (int i = length(); i > 0; --i) segment.tokens.push_back(token++);
        forest.push_back(segment);
        return static_cast<int>(forest.size()) - 1;
    };
    const int root = add(-1);
    for (int child = random.between(0, 2); child > 0; --child) {
        const int second = add(root);
        for (int grandchild = random.between(0, 2); grandchild > 0; --grandchild) add(second);
    }
    if (random.chance(0.3)) add(-1);
    return forest;
}
