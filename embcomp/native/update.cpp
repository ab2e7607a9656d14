// Fused optimizers over tables (embcomp.ops.tables, embcomp.ops.integer_tables), one thread: one step on the rows that a
// batch has read. Rows arrive as in bags.cpp.
#include <cmath>
#include <cstring>
#include <vector>

#include "optimizers.h"
#include "summed.h"

namespace {

using embcomp::Constants;
using embcomp::Grid;
using embcomp::kMostStates;
using embcomp::prefetch_row;
using embcomp::Request;
using embcomp::Rows;
using embcomp::Step;
using embcomp::SummedRows;

thread_local std::vector<float> one_row, no_gradient;

// What an optimizer keeps of each row: floats; for rows of integers the upper halves of floats, one each.
struct State {
  void* data;
  size_t width;
};

template <size_t DIM>
class Update {
 public:
  Update(const Rows& table, double* step_grads, uint32_t seed, const Constants& constants, void* const* states,
         const size_t* widths)
      : table_(table), step_grads_(step_grads), seed_(seed), constants_(constants), step_(constants) {
    for (int k = 0; k < constants.states; k++) states_[k] = {states[k], widths[k]};
    one_row.resize(n());
  }

  void fetch(uint64_t row) const {
    table_.prefetch(row);
    for (int k = 0; k < constants_.states; k++)
      if (table_.nbytes)
        __builtin_prefetch(halves(k) + row);
      else
        prefetch_row(floats(k, row), states_[k].width);
  }

  // One row, with its summed gradient, which is overwritten.
  void operator()(uint64_t row, float* g) {
    if (!constants_.lazy) skip_to(row);
    next_ = row + 1;
    if (table_.nbytes) return step_integers(row, g);
    step_floats(row, g);
  }

  // Steps the rows before this one that were not read.
  void skip_to(uint64_t row) {
    for (; next_ < row; next_++) {
      no_gradient.assign(n(), 0.0f);
      step_floats(next_, no_gradient.data());
    }
  }

 private:
  size_t n() const { return DIM ? DIM : table_.dim; }

  void step_floats(uint64_t row, float* g) const {
    const Grid& grid = table_.grid;
    float *w = table_.floats(row), *states[kMostStates];
    for (int k = 0; k < constants_.states; k++) states[k] = floats(k, row);
    if (grid.bits) step_grads_[grid.place(row)] += embcomp::pass_back<DIM>(g, w, grid.step(row), grid.half(), n());
    step_.template operator()<DIM>(w, g, states, n());
  }

  // What is not finite changes nothing: no integer could say so. A state is the upper half of a float, rounded at random
  // as the row is; a sum of squares would else no longer grow once it is some hundred times a square.
  void step_integers(uint64_t row, float* g) const {
    for (size_t d = 0; d < n(); d++)
      if (!std::isfinite(g[d])) return;
    float *w = one_row.data(), held[kMostStates], *states[kMostStates];
    table_.unpack<DIM>(row, w);
    for (int k = 0; k < constants_.states; k++) {
      const uint32_t bits = (uint32_t)halves(k)[row] << 16;
      std::memcpy(&held[k], &bits, sizeof bits);
      states[k] = &held[k];
    }
    step_.template operator()<DIM>(w, g, states, n());
    for (size_t d = 0; d < n(); d++)
      if (!std::isfinite(w[d])) return;
    for (int k = 0; k < constants_.states; k++) {
      uint32_t bits;
      std::memcpy(&bits, &held[k], sizeof bits);
      halves(k)[row] = (uint16_t)((bits + (embcomp::random_bits(~seed_, (uint32_t)row) >> 16)) >> 16);
    }
    table_.pack<DIM>(row, w, seed_);
  }

  float* floats(int k, uint64_t row) const { return (float*)states_[k].data + row * states_[k].width; }
  uint16_t* halves(int k) const { return (uint16_t*)states_[k].data; }

  Rows table_;
  double* step_grads_;
  uint32_t seed_;
  Constants constants_;
  Step step_;
  State states_[kMostStates] = {};
  uint64_t next_ = 0;
};

// The sum of the squares of a table's gradient.
template <size_t DIM>
struct Square {
  Rows table;
  double sum = 0.0;

  void fetch(uint64_t row) const {
    if (table.grid.bits) table.prefetch(row);
  }
  void operator()(uint64_t row, float* g) {
    const size_t n = DIM ? DIM : table.dim;
    const Grid& grid = table.grid;
    if (grid.bits) embcomp::pass_back<DIM>(g, table.floats(row), grid.step(row), grid.half(), n);
    for (size_t d = 0; d < n; d++) sum += (double)g[d] * g[d];
  }
};

}  // namespace

// `row_bytes` is 0 for a table of floats; with bits these were read on their grid, and the gradients of its steps are
// added to `step_grads`. Else the rows are integers, written again with random rounding from `seed`: for optimizers whose
// states have one number for a row, and lazy ones.
extern "C" void bag_update(void* table, size_t row_bytes, size_t num_rows, size_t dim, const float* steps,
                           int64_t shared, int bits, double* step_grads, uint32_t seed, const int64_t* rows,
                           const int64_t* offsets, const float* weights, size_t features, size_t batch,
                           const float* grad, size_t grad_stride, const int64_t* columns, const Constants* constants,
                           void* const* states, const size_t* widths) {
  const Request request{rows, offsets, weights, features, batch, grad, grad_stride, columns};
  const Rows stored{table, dim, row_bytes, Grid{steps, shared, bits}};
#define EMBCOMP_CALL(WIDTH)                                                          \
  {                                                                                  \
    Update<WIDTH> update(stored, step_grads, seed, *constants, states, widths);      \
    SummedRows<WIDTH>(dim, num_rows, request).each(update);                          \
    if (!constants->lazy) update.skip_to(num_rows);                                  \
  }
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}

// The squared norm of a table's gradient, as `bag_update` would sum it; `table` is read where it has a grid.
extern "C" void bag_square(void* table, size_t num_rows, size_t dim, const float* steps, int64_t shared, int bits,
                           const int64_t* rows, const int64_t* offsets, const float* weights, size_t features,
                           size_t batch, const float* grad, size_t grad_stride, const int64_t* columns, double* out) {
  const Request request{rows, offsets, weights, features, batch, grad, grad_stride, columns};
  const Rows stored{table, dim, 0, Grid{steps, shared, bits}};
#define EMBCOMP_CALL(WIDTH)                                  \
  {                                                          \
    Square<WIDTH> square{stored};                            \
    SummedRows<WIDTH>(dim, num_rows, request).each(square);  \
    *out = square.sum;                                       \
  }
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}
