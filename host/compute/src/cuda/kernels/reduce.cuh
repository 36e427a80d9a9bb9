// What reductions share. Which thread joins which element depends on the shape alone, and partial
// results are joined in a fixed order, so that a result is the same in every run.
//
// `splits` divides the reduced elements among blocks where there are few results: split s of result
// r goes to out[s·results + r], and a second pass joins the splits.
#pragma once
#include "device.cuh"

// In the order of the host's `Reduction`.
enum Reduction { SUM, MAX, MIN };

__device__ inline Index share(Index count, Index splits) { return (count + splits - 1) / splits; }
