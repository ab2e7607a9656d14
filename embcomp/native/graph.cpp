// Local moving on a weighted graph, the fast form of embcomp.graph.moves, and what else of graphs is too slow in Python.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "memory.h"

extern "C" {

// Vertices in `order` join the cluster with the largest gain  e(v, c) - gamma (out_v In_c + in_v Out_c)  among those of
// their neighbours, their own and an empty one, pass after pass. After the first pass only those are looked at that have a
// neighbour which moved. Gains that differ by less than `tie` are equal; the own cluster, then the first found, wins.
// `adjacency` is symmetric and without loops. Returns the memory that is
// missing.
size_t local_moves(size_t n, const int64_t* starts, const int32_t* adjacency, const float* weights, const double* out,
                   const double* in, double gamma, double tie, const int32_t* order, size_t passes, int32_t* labels) {
  return embcomp::missing_memory([&] {
    embcomp::Vector<double> out_of(n, 0.0), in_of(n, 0.0), edge_to(n, 0.0);
    embcomp::Vector<int32_t> members(n, 0), empty, seen;
    embcomp::Vector<char> active(n, 1);
    for (size_t v = 0; v < n; v++) {
      out_of[labels[v]] += out[v];
      in_of[labels[v]] += in[v];
      members[labels[v]]++;
    }
    for (size_t c = n; c-- > 0;)
      if (!members[c]) empty.push_back((int32_t)c);
    for (size_t pass = 0; pass < passes; pass++) {
      bool moved = false;
      for (size_t i = 0; i < n; i++) {
        const int32_t v = order[i];
        if (!active[v]) continue;
        active[v] = 0;
        const int32_t own = labels[v];
        out_of[own] -= out[v];
        in_of[own] -= in[v];
        for (int64_t j = starts[v]; j < starts[v + 1]; j++) {
          const int32_t c = labels[adjacency[j]];
          if (edge_to[c] == 0.0) seen.push_back(c);
          edge_to[c] += weights ? (double)weights[j] : 1.0;
        }
        int32_t best = own;
        double most = edge_to[own] - gamma * (out[v] * in_of[own] + in[v] * out_of[own]);
        for (const int32_t c : seen) {
          const double gain = edge_to[c] - gamma * (out[v] * in_of[c] + in[v] * out_of[c]);
          if (gain > most + tie) {
            most = gain;
            best = c;
          }
          edge_to[c] = 0.0;
        }
        seen.clear();
        if (most < -tie && members[own] > 1) {  // better alone
          best = empty.back();
          empty.pop_back();
        }
        out_of[best] += out[v];
        in_of[best] += in[v];
        if (best == own) continue;
        members[best]++;
        if (!--members[own]) empty.push_back(own);
        labels[v] = best;
        moved = true;
        for (int64_t j = starts[v]; j < starts[v + 1]; j++)
          if (labels[adjacency[j]] != best) active[adjacency[j]] = 1;
      }
      if (!moved) break;
    }
  });
}

// Writes the k largest entries of each row of a sparse matrix, largest first, of equal ones the lower column, all if a row
// has fewer. Returns the memory that is missing.
size_t largest_of_rows(size_t rows, const int64_t* starts, const int32_t* columns, const double* values, size_t k,
                       int32_t* out_columns, double* out_values) {
  return embcomp::missing_memory([&] {
    embcomp::Vector<int64_t> places;
    for (size_t row = 0; row < rows; row++) {
      places.clear();
      for (int64_t j = starts[row]; j < starts[row + 1]; j++) places.push_back(j);
      const size_t kept = std::min(k, places.size());
      std::partial_sort(places.begin(), places.begin() + (ptrdiff_t)kept, places.end(), [&](int64_t a, int64_t b) {
        return values[a] != values[b] ? values[a] > values[b] : columns[a] < columns[b];
      });
      for (size_t i = 0; i < kept; i++) {
        *out_columns++ = columns[places[i]];
        *out_values++ = values[places[i]];
      }
    }
  });
}

// A bijection of the 32-bit numbers, of which embcomp.graph.minhash has the inverse.
static inline uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

// Lowers table[id][order] to the hash of a neighbour of id in that order, for each pair of id and neighbour.
void keep_smallest(size_t pairs, const int64_t* ids, const int64_t* neighbours, size_t orders, const uint32_t* keys,
                   uint32_t* table) {
  for (size_t i = 0; i < pairs; i++) {
    const uint32_t neighbour = (uint32_t)neighbours[i];
    uint32_t* row = table + (size_t)ids[i] * orders;
    for (size_t j = 0; j < orders; j++) {
      const uint32_t hash = mixed(neighbour ^ keys[j]);
      row[j] = hash < row[j] ? hash : row[j];
    }
  }
}

}  // extern "C"
