// Rounding to a grid in one pass, the fast form of embcomp.ops.grid.snap.
#include <cstddef>
#include <cstdint>

#include "rows.h"

using embcomp::Grid;

extern "C" {

// Rows [count, dim] on their grid; `shared` is 0 for one step, 1 for a step for each row.
void grid_snap(const float* values, size_t count, size_t dim, const float* steps, int64_t shared, int bits, float* out) {
  const Grid grid{steps, shared, bits};
  for (size_t row = 0; row < count; row++)
    embcomp::snap_row<0>(out + row * dim, values + row * dim, grid.step(row), grid.half(), dim);
}

// The way back: `grad`, of the rounded rows, becomes that of the rows; those of the steps are added to `step_grads`.
void grid_snap_back(const float* values, size_t count, size_t dim, const float* steps, int64_t shared, int bits,
                    float* grad, double* step_grads) {
  const Grid grid{steps, shared, bits};
  for (size_t row = 0; row < count; row++)
    step_grads[grid.place(row)] +=
        embcomp::pass_back<0>(grad + row * dim, values + row * dim, grid.step(row), grid.half(), dim);
}

}  // extern "C"
