// The conv2d kernels that each instruction set provides, and what the driver hands to them.
//
// Everything is a stride-1 problem over planes (see layout.h): from a block's first vector, the vector that an
// edge multiplies is one constant offset away, whatever the kernel size, stride, dilation and group.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparsekern {

// What planes hold: float, double or the bits of a bfloat16. A vector of these is one of pairs, widened to two vectors of
// float when it is multiplied: the even elements and the odd ones.
using Bf16Bits = uint16_t;

template <class P>
struct SumType {
  using type = P;
};
template <>
struct SumType<Bf16Bits> {
  using type = float;
};
// What elements of planes are multiplied and summed in.
template <class P>
using SumOf = typename SumType<P>::type;

// A nonzero weight as a kernel meets it: how many elements after the block's first vector its operand lies.
template <class A>
struct Edge {
  int32_t offset;
  A weight;
};

// Row i holds edges[starts[i]] to edges[starts[i + 1]].
template <class A>
struct EdgeRows {
  const Edge<A>* edges;
  const int64_t* starts;
};

// The vectors worked on together, in registers: 2^rows_log2 rows of `width`. Those of a row follow one another,
// except that the last may lie earlier and overlap the one before it, so that nothing past the row is touched.
struct Block {
  int rows_log2;
  int width;
  int64_t at;     // element of the plane where the first vector starts
  int64_t pitch;  // elements from a row to the next
  int64_t last;   // elements from a row's first vector to its last
  int skip;       // leading lanes of the last vector that the one before has already
  // The same in the tensor or plane that holds the block's results and, in the backward pass, its inputs.
  int64_t out, out_pitch;
};

// Edges are met a panel of the channels that they read at a time, small enough that what a block meets of them stays
// in the first level cache. A block's sums wait in `sums` between the panels.
template <class A>
struct ChannelPanel {
  EdgeRows<A> rows;
  A* sums;           // of each row a block's vectors; null with a single panel
  int64_t sums_size;  // elements from a row's to the next's: threads may be at blocks of different widths
  bool first, last;  // sums start anew; results go where they belong
};

// Where a forward block's results go: with `put`, pixels whose lanes are images; without, elements of planes.
template <class P>
struct Sink {
  void (*put)(const Sink& sink, const SumOf<P>* vectors, const Block& block, int64_t channel);
  void* data;
  int64_t channel_stride;
  int64_t image_stride;
  int images;
  bool stream;  // past the caches: the tensor is large, and the same vectors of all images share a cache set
};

template <class P>
struct ForwardArgs {
  const P* input;
  int64_t begin, end;  // output channels to work on, a row of edges each
  const SumOf<P>* bias;
  Sink<P> sink;
};

template <class P>
struct BackwardArgs {
  const P* input;  // planes, plane_size elements apart
  P* input_grad;   // likewise; may be `input` itself
  int64_t plane_size;
  const P* grad;
  int64_t begin, end;      // planes to work on, a row of edges each
  SumOf<P>* weight_grad;  // of each edge, added to
  bool stream;             // past the caches
};

// Moves channels [begin, end) of up to kLanes images between a tensor and planes whose vectors are pixels, one
// image a lane. place[q] is the vector of pixel first + q, negative where a plane does not hold that pixel.
template <class A>
struct LaneCopy {
  void* tensor;
  int64_t image_stride, channel_stride;  // of the tensor, in elements
  int64_t begin, end;
  int images;
  int64_t first, pixels;
  const int32_t* place;
  A* planes;
  int64_t plane_size;
  bool stream;  // unpacking: as in Sink
};

// Moves channels [begin, end) of an image between a tensor and planes of elements: `rows` of `length` pixels.
template <class A>
struct RowCopy {
  void* tensor;
  int64_t channel_stride, row_stride;  // of the tensor, in elements
  int64_t begin, end;
  int64_t rows, length;
  A* planes;
  int64_t plane_size, pitch;
};

// Moves channels [begin, end) of a few images from a tensor into copies, shifted along the rows: see shifts.h.
template <class A>
struct ShiftCopy {
  const void* tensor;
  int64_t image_stride, channel_stride, row_stride;  // of the tensor, in elements
  int64_t begin, end;
  int pieces, images;  // images side by side in a vector, and how many of them exist
  int64_t rows, size;  // rows of `size` pixels
  int64_t step;
  const int64_t* firsts;
  int64_t copies;
  A* planes;
  int64_t plane_size, copy_size, pitch;  // elements from a channel, a copy, a row to the next
};

// Moves results of such tiles to a tensor. With step 2, even and odd pixels lie in planes of their own.
template <class A>
struct ShiftedResult {
  void* tensor;
  int64_t image_stride, channel_stride, row_stride;  // of the tensor, in elements
  int64_t begin, end;
  int pieces, images;
  int64_t rows;
  int64_t step;
  const A* planes;
  int64_t plane_size, pitch;
  int64_t even, odd;  // where these planes begin
  bool stream;
};

// Sums over the pixels of channels [begin, end): to each channel's vector of sums, of A's lanes, adds those of `images`
// images, of each the `pixels` from the tensor's address on.
template <class A>
struct ChannelSum {
  const void* tensor;
  int64_t image_stride, channel_stride;  // of the tensor, in elements
  int64_t begin, end;
  int64_t images, pixels;
  A* sums;
};

// An image whose pixels hold their channels side by side, to planes of channels.
struct PlanarCopy {
  const void* from;
  void* to;
  int64_t channels, pixels;
  bool stream;  // past the caches
};

template <class P>
struct Conv2dKernels {
  static constexpr int kShapes = 5;     // rows_log2
  static constexpr int kMaxWidth = 16;  // vectors in a row
  using Forward = void (*)(const ForwardArgs<P>&, const ChannelPanel<SumOf<P>>&, const Block&);
  using Backward = void (*)(const BackwardArgs<P>&, const ChannelPanel<SumOf<P>>&, const Block&);

  int lanes;  // elements of planes in a vector
  int forward_vectors, backward_vectors;  // the most that a block may hold
  Forward forward[kShapes][kMaxWidth + 1];
  Backward backward[kShapes][kMaxWidth + 1];  // both gradients
  Backward input_grad[kShapes][kMaxWidth + 1];
  Backward weight_grad[kShapes][kMaxWidth + 1];

  // By the tensor's DType; null where these planes do not hold that type. Pairs have those of rows alone.
  void (*put_lanes[4])(const Sink<P>&, const SumOf<P>*, const Block&, int64_t);
  void (*pack_lanes[4])(const LaneCopy<P>&);
  void (*unpack_lanes[4])(const LaneCopy<P>&);
  void (*make_planar[4])(const PlanarCopy&);
  void (*pack_rows[4])(const RowCopy<P>&);
  void (*unpack_rows[4])(const RowCopy<P>&);
  void (*pack_shifted[4])(const ShiftCopy<P>&);
  void (*unpack_shifted[4])(const ShiftedResult<P>&);
  void (*sum_channels[4])(const ChannelSum<SumOf<P>>&);
  int sum_lanes;  // in a vector of sums
  // `count` elements, those of the tensor `step` apart.
  void (*widen[4])(const void* tensor, int64_t step, int64_t count, P* to);
  void (*narrow[4])(const P* from, int64_t count, int64_t step, void* tensor);
};

}  // namespace sparsekern
