// A set of rows that gives them back in order, without those that are blocked.
#pragma once

#include <cstdint>
#include <vector>

namespace sparsekern {

// A bit for each row, and above them trees of bits: a word of 64 bits has a bit above it that says whether it has any.
// Taking a few rows back then takes time by what they are; where they are many, the words are read one after the other.
class RowSet {
 public:
  explicit RowSet(int64_t rows) : words_((rows + 63) / 64), blocked_(words_, 0) {
    for (int64_t size = words_;; size = (size + 63) / 64) {
      levels_.emplace_back(size, 0);
      if (size <= 1) break;
    }
  }

  // Whether so many rows are worth reading all words.
  bool is_many(int64_t count) const { return count * 4 >= words_; }

  // Blocks rows until the next drain.
  void block(const int32_t* begin, const int32_t* end) { set_bits(begin, end, blocked_.data()); }

  void insert_many(const int32_t* begin, const int32_t* end) { set_bits(begin, end, levels_[0].data()); }
  void insert_few(const int32_t* begin, const int32_t* end) {
    insert_many(begin, end);
    for (size_t level = 1; level < levels_.size(); ++level) {
      uint64_t* words = levels_[level].data();
      const int shift = 6 * static_cast<int>(level);
      for (const int32_t* row = begin; row != end; ++row) words[*row >> shift >> 6] |= uint64_t{1} << (*row >> shift & 63);
    }
  }

  // Write the rows, ascending, and empty the set. Return their end.
  int32_t* drain_many(int32_t* out) {
    uint64_t* words = levels_[0].data();
    for (int64_t w = 0; w < words_; ++w) {
      const uint64_t bits = words[w] & ~blocked_[w];
      words[w] = 0;
      blocked_[w] = 0;
      out = write(bits, w, out);
    }
    return out;
  }
  int32_t* drain_few(const int32_t* blocked, const int32_t* blocked_end, int32_t* out) {
    out = drain(levels_.size() - 1, 0, out);
    for (const int32_t* row = blocked; row != blocked_end; ++row) blocked_[*row >> 6] = 0;
    return out;
  }

 private:
  static void set_bits(const int32_t* begin, const int32_t* end, uint64_t* words) {
    for (const int32_t* row = begin; row != end; ++row) words[*row >> 6] |= uint64_t{1} << (*row & 63);
  }
  static int32_t* write(uint64_t bits, int64_t word, int32_t* out) {
    for (; bits; bits &= bits - 1) *out++ = static_cast<int32_t>(word * 64 + __builtin_ctzll(bits));
    return out;
  }
  int32_t* drain(size_t level, int64_t word, int32_t* out) {
    uint64_t bits = levels_[level][word];
    levels_[level][word] = 0;
    if (level == 0) return write(bits & ~blocked_[word], word, out);
    for (; bits; bits &= bits - 1) out = drain(level - 1, word * 64 + __builtin_ctzll(bits), out);
    return out;
  }

  int64_t words_;
  std::vector<std::vector<uint64_t>> levels_;
  std::vector<uint64_t> blocked_;
};

}  // namespace sparsekern
