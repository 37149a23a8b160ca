//! Queries, keys and values of a batch in the layout that attention reads.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::buffers::{Buffer, Element};
use super::device::CpuOps;
use super::kernels::bf16;
use super::kernels::elementwise;
use super::kernels::tile::PANEL;
use super::layout::{AttentionLayout, KEY_BLOCK};
use super::matrix::Matrix;
use super::operand::{Operand, OperandTarget, Precision};
use super::shared_pointer::SharedPointer;
use crate::layer::AttentionShape;
use crate::ops::batch::Rotary;
use crate::ops::device::QueryRows;

/// Rotated queries, keys and values of one layer.
///
/// Keys and values are panels: for every block of 64 keys and every key-value head, the keys as
/// `[64 / PANEL][head_dim][PANEL]` and the values as `[head_dim / PANEL][64][PANEL]`, filled up to whole panels; in
/// bf16 two consecutive steps of the inner dimension lie side by side, `[inner / 2][PANEL][2]`.
#[derive(Debug)]
pub struct AttentionProjection {
    /// Scaled as scores are; no columns where only last rows are queries.
    pub(super) queries: Operand,
    pub(super) shape: AttentionShape,
    pub(super) rotary: Arc<Rotary>,
    panels: KeyValuePanels,
}

/// Keys and values, in elements of the panels.
#[derive(Debug)]
enum KeyValuePanels {
    F32(Buffer<f32>),
    Bf16(Buffer<u32>),
}

/// Pointers to the keys and values of one block and head.
#[derive(Clone, Copy)]
pub(super) enum KeyBlock {
    F32 { keys: *const f32, values: *const f32 },
    Bf16 { keys: *const u32, values: *const u32 },
}

/// A projection that tasks write, each its own rows.
#[derive(Clone, Copy)]
pub(super) struct ProjectionTarget<'a> {
    queries: OperandTarget<'a>,
    panels: PanelsTarget,
    shape: &'a AttentionShape,
    rotary: &'a Rotary,
    has_queries: bool,
    projection: PhantomData<&'a mut AttentionProjection>,
}

#[derive(Clone, Copy)]
enum PanelsTarget {
    F32(SharedPointer<f32>),
    /// Single halves: two keys of a pair may belong to different tasks.
    Bf16(SharedPointer<u16>),
}

/// Elements of the keys, and of the values, of one block and head.
fn sizes(shape: &AttentionShape) -> (usize, usize) {
    (shape.head_dim * KEY_BLOCK, shape.head_dim.next_multiple_of(PANEL) * KEY_BLOCK)
}

impl AttentionProjection {
    /// Room for a batch with these queries.
    pub(super) fn new(
        ops: &CpuOps,
        layout: &AttentionLayout,
        shape: &AttentionShape,
        queries: QueryRows,
    ) -> Self {
        let columns = match queries {
            QueryRows::All => shape.output_columns(),
            QueryRows::LastOfSequence => 0,
        };
        let (keys, values) = sizes(shape);
        let stride = (keys + values) * shape.key_value_heads;
        let panels = match ops.precision {
            Precision::F32 => KeyValuePanels::F32(panels(layout, stride)),
            Precision::Bf16 => KeyValuePanels::Bf16(panels(layout, stride / 2)),
        };
        Self {
            queries: Operand::stale(ops.precision, layout.rows(), columns),
            shape: *shape,
            rotary: ops.rotary(layout, shape),
            panels,
        }
    }

    pub(super) fn target(&mut self) -> ProjectionTarget<'_> {
        ProjectionTarget {
            has_queries: self.queries.columns > 0,
            queries: self.queries.target(),
            shape: &self.shape,
            rotary: &self.rotary,
            panels: match &mut self.panels {
                KeyValuePanels::F32(values) => PanelsTarget::F32(SharedPointer::new(values)),
                KeyValuePanels::Bf16(values) => {
                    PanelsTarget::Bf16(SharedPointer::new(values).cast())
                }
            },
            projection: PhantomData,
        }
    }

    /// Rotates and keeps every packed row's `[q | k | v]`, or `[k | v]`.
    pub(super) fn store(&mut self, ops: &CpuOps, layout: &AttentionLayout, mut values: Matrix) {
        let columns = values.columns;
        assert_eq!(values.rows, layout.rows());
        let all = SharedPointer::new(&mut values.values);
        let target = self.target();
        ops.parallel_rows(layout.rows(), |rows| {
            // SAFETY: ranges of rows are disjoint, and within `values`.
            unsafe {
                let own = all.at(rows.start * columns);
                let own = std::slice::from_raw_parts_mut(own, rows.len() * columns);
                target.store(ops, layout, rows, own);
            }
        });
    }

    /// Keys and values of a block and head.
    pub(super) fn block(&self, block: usize, head: usize) -> KeyBlock {
        let (keys, values) = sizes(&self.shape);
        let start = (block * self.shape.key_value_heads + head) * (keys + values);
        match &self.panels {
            KeyValuePanels::F32(panels) => {
                let panels = &panels[start..start + keys + values];
                KeyBlock::F32 { keys: panels.as_ptr(), values: panels[keys..].as_ptr() }
            }
            KeyValuePanels::Bf16(panels) => {
                let panels = &panels[start / 2..(start + keys + values) / 2];
                KeyBlock::Bf16 { keys: panels.as_ptr(), values: panels[keys / 2..].as_ptr() }
            }
        }
    }
}

/// KeyValuePanels of a batch. Lanes without a key are zeros: attention weighs them with zero, and zero times what
/// another batch left there need not be zero.
fn panels<T: Element>(layout: &AttentionLayout, stride: usize) -> Buffer<T> {
    let mut panels = Buffer::stale(layout.blocks() * stride);
    for block in layout.partial_blocks() {
        panels[block * stride..(block + 1) * stride].fill(T::default());
    }
    panels
}

impl ProjectionTarget<'_> {
    /// Rotates and keeps `[q | k | v]`, or `[k | v]`, of the given packed rows; `values` has one row each.
    ///
    /// # Safety
    /// No other task stores these rows, and none reads them yet.
    pub(super) unsafe fn store(
        self,
        ops: &CpuOps,
        layout: &AttentionLayout,
        rows: Range<usize>,
        values: &mut [f32],
    ) {
        let AttentionShape { heads, key_value_heads, head_dim, .. } = *self.shape;
        let query_heads = if self.has_queries { heads } else { 0 };
        let columns = (query_heads + 2 * key_value_heads) * head_dim;
        assert_eq!(values.len(), rows.len() * columns);
        let scale = self.shape.scale();
        let mut rounded = Buffer::stale(2 * key_value_heads * head_dim);
        for (row, values) in rows.zip(values.chunks_exact_mut(columns)) {
            let (cosine, sine) = self.rotary.at(layout.positions()[row]);
            elementwise::rotate(
                ops.isa,
                values,
                query_heads + key_value_heads,
                head_dim,
                cosine,
                sine,
            );
            let (queries, key_value) = values.split_at_mut(query_heads * head_dim);
            // SAFETY: the rows are this task's, and the slots those of the layout.
            unsafe {
                if self.has_queries {
                    elementwise::scale(ops.isa, queries, scale);
                    self.queries.write(row * heads * head_dim, queries);
                }
                match self.panels {
                    PanelsTarget::F32(panels) => {
                        for (block, lane) in layout.slots(row) {
                            self.keep(panels, block, lane, key_value);
                        }
                    }
                    PanelsTarget::Bf16(panels) => {
                        bf16::round(key_value, &mut rounded);
                        for (block, lane) in layout.slots(row) {
                            self.keep_pairs(panels, block, lane, &rounded);
                        }
                    }
                }
            }
        }
    }

    /// Element of a block and head's keys, and of its values.
    fn start(self, block: usize, head: usize) -> (usize, usize) {
        let (keys, values) = sizes(self.shape);
        let start = (block * self.shape.key_value_heads + head) * (keys + values);
        (start, start + keys)
    }

    /// Writes `[k | v]` of one row.
    ///
    /// # Safety
    /// The block exists, and no other task writes or reads this lane.
    unsafe fn keep(self, panels: SharedPointer<f32>, block: usize, lane: usize, key_value: &[f32]) {
        let head_dim = self.shape.head_dim;
        let (keys, values) = key_value.split_at(key_value.len() / 2);
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (keys, values)) in heads.enumerate() {
            let (key_start, value_start) = self.start(block, head);
            let key_start = key_start + lane / PANEL * head_dim * PANEL + lane % PANEL;
            for (channel, &key) in keys.iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { *panels.at(key_start + channel * PANEL) = key };
            }
            for (panel, values) in values.chunks(PANEL).enumerate() {
                let row = value_start + (panel * KEY_BLOCK + lane) * PANEL;
                // SAFETY: the caller's.
                unsafe {
                    std::ptr::copy_nonoverlapping(values.as_ptr(), panels.at(row), values.len());
                }
            }
        }
    }

    /// As [`Self::keep`], in pairs.
    ///
    /// # Safety
    /// As [`Self::keep`].
    unsafe fn keep_pairs(
        self,
        panels: SharedPointer<u16>,
        block: usize,
        lane: usize,
        key_value: &[u16],
    ) {
        let head_dim = self.shape.head_dim;
        let (keys, values) = key_value.split_at(key_value.len() / 2);
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (keys, values)) in heads.enumerate() {
            let (key_start, value_start) = self.start(block, head);
            let key_start = key_start + lane / PANEL * head_dim * PANEL + lane % PANEL * 2;
            for (pair, keys) in keys.chunks_exact(2).enumerate() {
                // SAFETY: the caller's.
                unsafe {
                    let target = panels.at(key_start + pair * 2 * PANEL);
                    *target = keys[0];
                    *target.add(1) = keys[1];
                }
            }
            for (panel, values) in values.chunks(PANEL).enumerate() {
                let row = (panel * KEY_BLOCK + lane / 2 * 2) * PANEL + lane % 2;
                for (channel, &value) in values.iter().enumerate() {
                    // SAFETY: the caller's.
                    unsafe { *panels.at(value_start + row + 2 * channel) = value };
                }
            }
        }
    }
}
