// The rules of optimizers (embcomp/ops/optimizers has each in plain torch): one step of one row, from its summed gradient.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "rows.h"

namespace embcomp {

enum Rule {
  SGD = 0,
  ADAGRAD = 1,
  ROWWISE_ADAGRAD = 2,
  ADAM = 3,
  PARTIAL_ROWWISE_ADAM = 4,
  LAMB = 5,
  PARTIAL_ROWWISE_LAMB = 6
};

constexpr size_t kMostStates = 3;

// As embcomp.ops.optimizers.base.Constants lays them out.
struct Constants {
  int32_t rule, nesterov;
  int32_t lazy;  // else rows that were not read are stepped too, with a gradient of zero
  int32_t states;
  double lr, eps, beta1, beta2, momentum;
  double l2;     // weight decay that joins the gradient
  double decay;  // weight decay beside it
  double scale, most;  // gradients are multiplied, then kept in [-most, most]
};

inline float square(const float* g, size_t n) {
  float sum = 0.0f;
  for (size_t d = 0; d < n; d++) sum += g[d] * g[d];
  return sum;
}

template <size_t DIM>
inline void rowwise_adagrad(float* __restrict w, const float* __restrict g, float* sum, float lr, float eps, size_t dim) {
  const size_t n = DIM ? DIM : dim;
  const float total = *sum + square(g, n) / (float)n;
  *sum = total;
  add_scaled<DIM>(w, g, -lr / (std::sqrt(total) + eps), n);
}

class Step {
 public:
  explicit Step(const Constants& constants)
      : c_(constants),
        lr_((float)constants.lr),
        eps_((float)constants.eps),
        adjusts_(constants.scale != 1.0 || constants.most < HUGE_VAL || constants.l2 != 0.0),
        log1_(std::log(constants.beta1)),
        log2_(std::log(constants.beta2)) {}

  // The row moves by its gradient, which is overwritten. `states` are those of the row.
  template <size_t DIM>
  void operator()(float* __restrict w, float* __restrict g, float* const* states, size_t dim) const {
    const size_t n = DIM ? DIM : dim;
    if (adjusts_) adjust<DIM>(w, g, n);
    switch (c_.rule) {
      case SGD: return sgd<DIM>(w, g, states, n);
      case ADAGRAD: return adagrad<DIM>(w, g, states[0], n);
      case ROWWISE_ADAGRAD: return rowwise_adagrad<DIM>(w, g, states[0], lr_, eps_, n);
      case ADAM: return adam<DIM, false, false>(w, g, states, n);
      case PARTIAL_ROWWISE_ADAM: return adam<DIM, true, false>(w, g, states, n);
      case LAMB: return adam<DIM, false, true>(w, g, states, n);
      case PARTIAL_ROWWISE_LAMB: return adam<DIM, true, true>(w, g, states, n);
    }
  }

  // Whether the step is `rowwise_adagrad` alone, with this factor and this constant.
  bool is_rowwise_adagrad() const { return c_.rule == ROWWISE_ADAGRAD && !adjusts_; }
  float lr() const { return lr_; }
  float eps() const { return eps_; }

 private:
  // What comes before the rule: the factor, clipping, and weight decay that joins the gradient.
  template <size_t DIM>
  void adjust(const float* __restrict w, float* __restrict g, size_t n) const {
    const float scale = (float)c_.scale, most = (float)c_.most;
    if (c_.scale != 1.0)
      for (size_t d = 0; d < n; d++) g[d] *= scale;
    if (c_.most < HUGE_VAL)  // NaN stays
      for (size_t d = 0; d < n; d++) g[d] = g[d] < -most ? -most : g[d] > most ? most : g[d];
    if (c_.l2 != 0.0) add_scaled<DIM>(g, w, (float)c_.l2, n);
  }

  template <size_t DIM>
  void sgd(float* __restrict w, float* __restrict g, float* const* states, size_t n) const {
    const float momentum = (float)c_.momentum;
    if (momentum != 0.0f) {
      float* __restrict kept = states[0];
      for (size_t d = 0; d < n; d++) {
        kept[d] = momentum * kept[d] + g[d];
        g[d] = c_.nesterov ? g[d] + momentum * kept[d] : kept[d];
      }
    }
    add_scaled<DIM>(w, g, -lr_, n);
  }

  template <size_t DIM>
  void adagrad(float* __restrict w, const float* __restrict g, float* __restrict sum, size_t n) const {
    for (size_t d = 0; d < n; d++) {
      sum[d] += g[d] * g[d];
      w[d] -= lr_ * g[d] / (std::sqrt(sum[d]) + eps_);
    }
  }

  // Adam; with one second moment for the row; with the trust ratio of LAMB.
  template <size_t DIM, bool ROWWISE, bool TRUST>
  void adam(float* __restrict w, float* __restrict g, float* const* states, size_t n) const {
    float *__restrict first = states[0], *__restrict second = states[1];
    const double step = *states[2] += 1.0f;
    const float new1 = (float)(1.0 - c_.beta1), new2 = (float)(1.0 - c_.beta2), old2 = (float)c_.beta2;
    const float rate = (float)(1.0 / -std::expm1(step * log1_));
    const float root = (float)(1.0 / std::sqrt(-std::expm1(step * log2_)));
    if (ROWWISE) *second = old2 * *second + new2 * (square(g, n) / (float)n);
    for (size_t d = 0; d < n; d++) {
      first[d] += new1 * (g[d] - first[d]);
      if (!ROWWISE) second[d] = old2 * second[d] + new2 * g[d] * g[d];
      g[d] = rate * first[d] / (std::sqrt(second[ROWWISE ? 0 : d]) * root + eps_) + (float)c_.decay * w[d];
    }
    float lr = lr_;
    if (TRUST) {
      const float of_row = std::sqrt(square(w, n)), of_step = std::sqrt(square(g, n));
      if (of_row > 0.0f && of_step > 0.0f) lr *= of_row / of_step;
    }
    add_scaled<DIM>(w, g, -lr, n);
  }

  Constants c_;
  float lr_, eps_;
  bool adjusts_;
  double log1_, log2_;
};

}  // namespace embcomp
