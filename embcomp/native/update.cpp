// Fused optimizers over tables (embcomp.ops.updates, embcomp.ops.integer_tables): one step on the rows that a batch has
// read.
#include <cmath>
#include <cstring>
#include <memory>

#include "memory.h"
#include "optimizers.h"
#include "summed.h"

namespace {

using embcomp::Constants;
using embcomp::Gradient;
using embcomp::Grid;
using embcomp::kMostStates;
using embcomp::prefetch_row;
using embcomp::Request;
using embcomp::Rows;
using embcomp::Step;
using embcomp::Sums;
using embcomp::SumsOf;

// The optimizer of one table, as embcomp.ops.requests lays it out. The gradients of the steps of a grid are added to
// `step_grads`. Rows of integers are written again with random rounding from `seed`: for optimizers whose states have one
// number for a row, and lazy ones.
struct Optimizer {
  Constants constants;
  void* states[kMostStates];
  uint64_t widths[kMostStates];  // floats of a row; states of integers have one upper half of a float each
  double* step_grads;
  uint64_t seed;
};

// Rows of floats under row-wise Adagrad, and nothing else: small enough for registers.
template <size_t DIM>
struct PlainRows {
  float *rows, *sums;
  size_t dim;
  float lr, eps;

  float* at(uint64_t row) const { return rows + row * (DIM ? DIM : dim); }
  void fetch(uint64_t row) const {
    prefetch_row<true, DIM>(at(row), dim);
    embcomp::prefetch<true>(sums + row);
  }
  void visit(uint64_t row, const float* g) const {
    embcomp::rowwise_adagrad<DIM>(at(row), g, sums + row, lr, eps, dim);
  }
};

// The same for rows that are read on a grid of one step, whose gradient is added to `step_grad`.
template <size_t DIM>
struct GridRows {
  PlainRows<DIM> plain;
  float step, half;
  double* step_grad;

  void fetch(uint64_t row) const { plain.fetch(row); }
  void visit(uint64_t row, const float* g) const {
    float passed[DIM];
    std::memcpy(passed, g, sizeof passed);
    *step_grad += embcomp::pass_back<DIM>(passed, plain.at(row), step, half, DIM);
    plain.visit(row, passed);
  }
};

template <size_t DIM>
class Update {
 public:
  Update(const Request& request, const Optimizer& optimizer)
      : table_(request.stored()), kept_(optimizer), step_(optimizer.constants) {}

  void fetch(uint64_t row) const {
    table_.template prefetch<true, DIM>(row);
    for (int k = 0; k < kept_.constants.states; k++)
      if (table_.nbytes)
        embcomp::prefetch<true>(halves(k) + row);
      else
        prefetch_row<true>(floats(k, row), kept_.widths[k]);
  }

  // One row, with its summed gradient. Called, so that the loop that sums gradients stays small.
  EMBCOMP_NOINLINE void visit(uint64_t row, const float* sum) {
    static thread_local embcomp::Vector<float> room;  // a step overwrites the gradient
    room.assign(sum, sum + n());
    float* g = room.data();
    if (table_.nbytes) return step_integers(row, g);
    if (!kept_.constants.lazy) {
      skip_to(row);
      next_ = row + 1;
    }
    step_floats(row, g);
  }

  template <class Work>
  void with_plain(const Work& work) {
    const Grid& grid = table_.grid;
    if (step_.is_rowwise_adagrad() && kept_.constants.lazy && !table_.nbytes) {
      const PlainRows<DIM> plain{table_.floats(0), floats(0, 0), n(), step_.lr(), step_.eps()};
      if (!grid.bits) return work(plain);
      if constexpr (DIM > 0)
        if (!grid.shared) return work(GridRows<DIM>{plain, grid.step(0), grid.half(), kept_.step_grads});
    }
    work(ByReference{this});
  }

  // Steps the rows before this one that were not read.
  void skip_to(uint64_t row) {
    embcomp::Vector<float> no_gradient(n());
    for (; next_ < row; next_++) {
      std::fill(no_gradient.begin(), no_gradient.end(), 0.0f);
      step_floats(next_, no_gradient.data());
    }
  }

 private:
  size_t n() const { return DIM ? DIM : table_.dim; }

  struct ByReference {
    Update* update;
    void fetch(uint64_t row) const { update->fetch(row); }
    void visit(uint64_t row, const float* sum) const { update->visit(row, sum); }
  };

  void step_floats(uint64_t row, float* g) const {
    const Grid& grid = table_.grid;
    float *w = table_.floats(row), *states[kMostStates];
    for (int k = 0; k < kept_.constants.states; k++) states[k] = floats(k, row);
    if (grid.bits)
      kept_.step_grads[grid.place(row)] += embcomp::pass_back<DIM>(g, w, grid.step(row), grid.half(), n());
    step_.template operator()<DIM>(w, g, states, n());
  }

  // What is not finite changes nothing: no integer could say so. A state is the upper half of a float, rounded at random
  // as the row is; a sum of squares would else no longer grow once it is some hundred times a square.
  void step_integers(uint64_t row, float* g) const {
    for (size_t d = 0; d < n(); d++)
      if (!std::isfinite(g[d])) return;
    static thread_local embcomp::Vector<float> one_row;
    one_row.resize(n());
    float *w = one_row.data(), held[kMostStates], *states[kMostStates];
    table_.unpack<DIM>(row, w);
    for (int k = 0; k < kept_.constants.states; k++) {
      const uint32_t bits = (uint32_t)halves(k)[row] << 16;
      std::memcpy(&held[k], &bits, sizeof bits);
      states[k] = &held[k];
    }
    step_.template operator()<DIM>(w, g, states, n());
    for (size_t d = 0; d < n(); d++)
      if (!std::isfinite(w[d])) return;
    const uint32_t seed = (uint32_t)kept_.seed;
    for (int k = 0; k < kept_.constants.states; k++) {
      uint32_t bits;
      std::memcpy(&bits, &held[k], sizeof bits);
      halves(k)[row] = (uint16_t)((bits + (embcomp::random_bits(~seed, (uint32_t)row) >> 16)) >> 16);
    }
    table_.pack<DIM>(row, w, seed);
  }

  float* floats(int k, uint64_t row) const { return (float*)kept_.states[k] + row * kept_.widths[k]; }
  uint16_t* halves(int k) const { return (uint16_t*)kept_.states[k]; }

  Rows table_;
  Optimizer kept_;
  Step step_;
  uint64_t next_ = 0;
};

// The sum of the squares of a table's gradient.
template <size_t DIM>
struct Square {
  Rows table;
  double* sum;
  embcomp::Vector<float> room = {};

  template <class Work>
  void with_plain(const Work& work) {
    work(*this);
  }
  void fetch(uint64_t row) const {
    if (table.grid.bits && !table.nbytes) table.prefetch(row);
  }
  void visit(uint64_t row, const float* summed) {
    const size_t n = DIM ? DIM : table.dim;
    const Grid& grid = table.grid;
    room.assign(summed, summed + n);
    float* g = room.data();
    if (grid.bits && !table.nbytes) embcomp::pass_back<DIM>(g, table.floats(row), grid.step(row), grid.half(), n);
    for (size_t d = 0; d < n; d++) *sum += (double)g[d] * g[d];
  }
};

template <size_t DIM>
class Updated : public SumsOf<DIM, Update<DIM>> {
 public:
  Updated(const Request& request, const Gradient& grad, const Optimizer& optimizer)
      : SumsOf<DIM, Update<DIM>>(request, grad, Update<DIM>(request, optimizer)) {
    this->in_order = !optimizer.constants.lazy;
  }
  void finish(embcomp::ThreadScratch& room) override {
    SumsOf<DIM, Update<DIM>>::finish(room);
    if (this->in_order) this->visitor().skip_to(this->num_rows());
  }
};

template <template <size_t> class Kind, class... Arguments>
std::unique_ptr<Sums> of_width(size_t dim, const Arguments&... arguments) {
#define EMBCOMP_CALL(WIDTH) return std::make_unique<Kind<WIDTH>>(arguments...)
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}

template <size_t DIM>
class Squared : public SumsOf<DIM, Square<DIM>> {
 public:
  Squared(const Request& request, const Gradient& grad, double* sum)
      : SumsOf<DIM, Square<DIM>>(request, grad, Square<DIM>{request.stored(), sum}) {}
};

}  // namespace

// One step on the rows of several tables, whose features stand side by side in `grad`. Returns the memory that is
// missing.
extern "C" size_t update_tables(const Request* requests, size_t tables, const float* grad, size_t grad_stride,
                                const Optimizer* optimizers, size_t threads) {
  return embcomp::missing_memory([&] {
    embcomp::Vector<std::unique_ptr<Sums>> sums;
    for (size_t t = 0; t < tables; t++) {
      sums.push_back(of_width<Updated>(requests[t].dim, requests[t], Gradient{grad, grad_stride}, optimizers[t]));
      if (optimizers[t].step_grads) threads = 1;  // rows of several threads may share a step
    }
    embcomp::sum_all(requests, sums, threads);
  });
}

// Adds the squared norm of the gradient of a table to `sum`, as `update_tables` would sum it; rows are read where they have
// a grid. Returns the memory that is missing.
extern "C" size_t square_of_gradient(const Request* request, const float* grad, size_t grad_stride, double* sum) {
  return embcomp::missing_memory([&] {
    embcomp::Vector<std::unique_ptr<Sums>> sums;
    sums.push_back(of_width<Squared>(request->dim, *request, Gradient{grad, grad_stride}, sum));
    embcomp::sum_all(request, sums, 1);
  });
}
