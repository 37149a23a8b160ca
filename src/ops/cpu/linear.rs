//! Linear layers over weights that are packed once at load.

use super::buffers::Buffer;
use super::device::CpuOps;
use super::kernels::bf16::{self, PairPanel};
use super::kernels::elementwise::{geglu, gelu, swiglu};
use super::kernels::tile::{self, PANEL, Strided};
use super::operand::{Operand, Precision, Values};
use super::shared_pointer::SharedPointer;
use crate::isa::Isa;
use crate::layer::Gelu;

/// Rows that one task multiplies by a panel, which stays in the second-level cache meanwhile.
pub(super) const ROW_BLOCK: usize = 96;
/// Tasks for each thread, where rows are few: the last ones to end leave little idle.
const TASKS_PER_THREAD: usize = 4;
/// Output channels of each kind in a panel of a gated weight.
const HALF: usize = PANEL / 2;

/// A weight `[out, in]` as panels of 32 output channels, the last one filled up with zeros:
/// `[out / PANEL][in][PANEL]` in f32, `[out / PANEL][in / 2][PANEL][2]` in bf16, where the dot-product
/// instruction takes pairs.
#[derive(Debug)]
pub struct PackedWeight {
    rows: usize,
    columns: usize,
    panels: WeightPanels,
    /// Added to each output channel, filled up to whole panels.
    bias: Option<Vec<f32>>,
}

/// Gate and up projections, 16 channels of each to a panel, so that a tile holds both factors.
#[derive(Debug)]
pub struct PackedGate(PackedWeight);

#[derive(Debug)]
enum WeightPanels {
    F32(Buffer<f32>),
    Bf16(Buffer<u32>),
}

impl PackedWeight {
    /// Packs a row-major `[rows, columns]` weight. In bf16, `columns` is even.
    pub(super) fn new(precision: Precision, values: &[f32], rows: usize, columns: usize) -> Self {
        debug_assert_eq!(values.len(), rows * columns);
        let order: Vec<Option<usize>> =
            (0..rows.next_multiple_of(PANEL)).map(|row| (row < rows).then_some(row)).collect();
        Self::ordered(precision, values, &order, rows, columns)
    }

    /// Packs the rows in the given order; `None` is a row of zeros.
    fn ordered(
        precision: Precision,
        values: &[f32],
        order: &[Option<usize>],
        rows: usize,
        columns: usize,
    ) -> Self {
        let lanes = order.iter().enumerate().filter_map(|(lane, &row)| Some((lane, row?)));
        let cells = lanes.flat_map(|(lane, row)| {
            let panel = lane / PANEL * columns;
            let row = &values[row * columns..][..columns];
            let cell = move |(k, &value): (usize, &f32)| (panel, lane % PANEL, k, value);
            row.iter().enumerate().map(cell)
        });
        let panels = match precision {
            Precision::F32 => {
                let mut packed = vec![0f32; order.len() * columns];
                for (panel, lane, k, value) in cells {
                    packed[(panel + k) * PANEL + lane] = value;
                }
                WeightPanels::F32(packed.into())
            }
            Precision::Bf16 => {
                assert!(columns.is_multiple_of(2), "config.json's checks make widths even");
                let mut packed = vec![0u32; order.len() * columns / 2];
                for (panel, lane, k, value) in cells {
                    let bits = u32::from(half::bf16::from_f32(value).to_bits());
                    packed[(panel / 2 + k / 2) * PANEL + lane] |= bits << (16 * (k % 2));
                }
                WeightPanels::Bf16(packed.into())
            }
        };
        Self { rows, columns, panels, bias: None }
    }

    /// A weight `[rows, columns]` whose panels are filled.
    pub(super) fn from_f32_panels(panels: Buffer<f32>, rows: usize, columns: usize) -> Self {
        Self { rows, columns, panels: WeightPanels::F32(panels), bias: None }
    }

    /// As [`PackedWeight::from_f32_panels`].
    pub(super) fn from_bf16_panels(panels: Buffer<u32>, rows: usize, columns: usize) -> Self {
        Self { rows, columns, panels: WeightPanels::Bf16(panels), bias: None }
    }

    /// The weight with a bias `[rows]`.
    pub(super) fn with_bias(self, mut bias: Vec<f32>) -> Self {
        assert_eq!(bias.len(), self.rows);
        bias.resize(self.rows.next_multiple_of(PANEL), 0.0);
        Self { bias: Some(bias), ..self }
    }

    /// Output channels.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// A panel of a bf16 weight, and the one after it.
    fn bf16_panel(&self, index: usize) -> PairPanel {
        let WeightPanels::Bf16(panels) = &self.panels else {
            unreachable!("operands and weights of one device have one precision")
        };
        let size = self.columns / 2 * PANEL;
        let next = panels.get((index + 1) * size..).filter(|rest| !rest.is_empty());
        let next = next.map_or(std::ptr::null(), <[u32]>::as_ptr);
        PairPanel { start: panels[index * size..].as_ptr(), next }
    }
}

impl PackedGate {
    /// Packs row-major `[gate; up]`, `[rows, columns]` each.
    pub(super) fn new(precision: Precision, values: &[f32], rows: usize, columns: usize) -> Self {
        let order: Vec<Option<usize>> = (0..rows.next_multiple_of(HALF))
            .step_by(HALF)
            .flat_map(|first| [first, rows + first].map(|start| (first, start)))
            .flat_map(|(first, start)| {
                (0..HALF).map(move |i| (first + i < rows).then_some(start + i))
            })
            .collect();
        Self(PackedWeight::ordered(precision, values, &order, rows, columns))
    }

    /// Output channels.
    pub(super) fn rows(&self) -> usize {
        self.0.rows
    }
}

/// `out = x W^T + bias`, or `out += x W^T + bias` where `accumulate` is set; `x` is `[rows, in]`, `out` is
/// `[rows, out]`. Each output is one sum over `in` in ascending order.
pub(super) fn multiply(
    ops: &CpuOps,
    x: &Operand,
    weight: &PackedWeight,
    out: &mut [f32],
    accumulate: bool,
) {
    assert_eq!((x.columns, out.len()), (weight.columns, x.rows * weight.rows));
    let target = SharedPointer::new(out);
    tasks(ops, x.rows, weight, |first_row, count, panel| {
        let columns = PANEL.min(weight.rows - panel * PANEL);
        // SAFETY: the lengths were asserted, tasks write disjoint parts of `out`, and a panel that
        // reaches beyond the last column goes through `edge`.
        unsafe {
            let start = target.at(first_row * weight.rows + panel * PANEL);
            if columns == PANEL {
                let out = Strided { start, stride: weight.rows };
                multiply_panel(ops.isa, x, weight, first_row, count, panel, out, accumulate);
            } else {
                let mut edge = Buffer::stale(count * PANEL);
                let out = Strided { start: edge.as_mut_ptr(), stride: PANEL };
                multiply_panel(ops.isa, x, weight, first_row, count, panel, out, false);
                for (r, row) in edge.chunks_exact(PANEL).take(count).enumerate() {
                    for (c, &value) in row[..columns].iter().enumerate() {
                        let cell = start.add(r * weight.rows + c);
                        *cell = if accumulate { *cell + value } else { value };
                    }
                }
            }
        }
    });
}

/// `silu(x W_gate^T) * x W_up^T`, or with a `gelu` in the place of silu: `[rows, in]` to `[rows, out]`.
pub(super) fn multiply_gated(
    ops: &CpuOps,
    x: &Operand,
    gate: &PackedGate,
    gelu: Option<Gelu>,
    out: &mut Operand,
) {
    let weight = &gate.0;
    assert_eq!((x.columns, out.rows, out.columns), (weight.columns, x.rows, weight.rows));
    let (target, width, depth) = (out.target(), weight.rows, weight.columns);
    tasks(ops, x.rows, weight, |first_row, count, panel| {
        let columns = HALF.min(width - panel * HALF);
        let first = first_row * width + panel * HALF;
        // SAFETY: tasks write disjoint parts of `out`, `count` rows of `columns` each; `factors` holds `count`
        // rows of a panel.
        unsafe {
            if let (Values::Bf16(values), Some(start), None) =
                (&x.values, target.bf16_at(first), gelu)
            {
                let x = Strided { start: values[first_row * depth..].as_ptr(), stride: depth };
                let out = Strided { start, stride: width };
                bf16::multiply_gated(count, depth, x, weight.bf16_panel(panel), out, columns);
                return;
            }
            let mut factors = Buffer::stale(count * PANEL);
            let mut products = Buffer::stale(count * HALF);
            let tile = Strided { start: factors.as_mut_ptr(), stride: PANEL };
            multiply_panel(ops.isa, x, weight, first_row, count, panel, tile, false);
            match gelu {
                None => swiglu(ops.isa, &factors, HALF, &mut products),
                Some(gelu) => geglu(ops.isa, &factors, HALF, gelu, &mut products),
            }
            for (r, row) in products.chunks_exact(HALF).enumerate() {
                target.write(first + r * width, &row[..columns]);
            }
        }
    });
}

/// `gelu(x W^T + bias)`: `[rows, in]` to `[rows, out]`.
pub(super) fn multiply_gelu(
    ops: &CpuOps,
    x: &Operand,
    weight: &PackedWeight,
    kind: Gelu,
    out: &mut Operand,
) {
    assert_eq!((x.columns, out.rows, out.columns), (weight.columns, x.rows, weight.rows));
    let (target, width) = (out.target(), weight.rows);
    tasks(ops, x.rows, weight, |first_row, count, panel| {
        let columns = PANEL.min(width - panel * PANEL);
        let mut products = Buffer::stale(count * PANEL);
        // SAFETY: tasks write disjoint parts of `out`, `count` rows of `columns` each; `products` holds `count` rows
        // of a panel.
        unsafe {
            let tile = Strided { start: products.as_mut_ptr(), stride: PANEL };
            multiply_panel(ops.isa, x, weight, first_row, count, panel, tile, false);
            gelu(ops.isa, &mut products, kind);
            for (r, row) in products.chunks_exact(PANEL).enumerate() {
                target.write(first_row * width + panel * PANEL + r * width, &row[..columns]);
            }
        }
    });
}

/// Runs `task(first row, rows, panel)` over all rows and panels of a product.
fn tasks(
    ops: &CpuOps,
    rows: usize,
    weight: &PackedWeight,
    task: impl Fn(usize, usize, usize) + Sync + Send,
) {
    let panels = match &weight.panels {
        WeightPanels::F32(values) => values.len() / (weight.columns * PANEL),
        WeightPanels::Bf16(values) => values.len() / (weight.columns / 2 * PANEL),
    };
    let row_blocks = rows.div_ceil(ROW_BLOCK).max(1);
    let wanted = (ops.threads() * TASKS_PER_THREAD).div_ceil(row_blocks);
    let together = if ops.threads() == 1 { panels } else { panels.div_ceil(wanted) };
    let panel_blocks = panels.div_ceil(together);
    ops.parallel(row_blocks * panel_blocks, |index| {
        let first_row = index / panel_blocks * ROW_BLOCK;
        let first_panel = index % panel_blocks * together;
        for panel in first_panel..(first_panel + together).min(panels) {
            task(first_row, ROW_BLOCK.min(rows - first_row), panel);
        }
    });
}

/// `count` rows of `x` by one panel, with its bias.
///
/// # Safety
/// The rows and the panel exist, and `out` is writable for `count` rows of `PANEL` elements.
#[allow(clippy::too_many_arguments)]
unsafe fn multiply_panel(
    isa: Isa,
    x: &Operand,
    weight: &PackedWeight,
    first_row: usize,
    count: usize,
    panel: usize,
    out: Strided<*mut f32>,
    accumulate: bool,
) {
    let depth = weight.columns;
    // A sum that starts from the bias costs the kernels nothing.
    let accumulate = match &weight.bias {
        None => accumulate,
        Some(bias) => {
            let bias = &bias[panel * PANEL..][..PANEL];
            for row in 0..count {
                // SAFETY: the caller's.
                unsafe {
                    let out = out.start.add(row * out.stride);
                    if !accumulate {
                        std::ptr::copy_nonoverlapping(bias.as_ptr(), out, PANEL);
                        continue;
                    }
                    for (channel, bias) in bias.iter().enumerate() {
                        *out.add(channel) += bias;
                    }
                }
            }
            true
        }
    };
    // SAFETY: the caller's; a panel holds `depth * PANEL` elements.
    unsafe {
        match (&x.values, &weight.panels) {
            (Values::F32(values), WeightPanels::F32(panels)) => {
                let x = Strided { start: values[first_row * depth..].as_ptr(), stride: depth };
                let panel = panels[panel * depth * PANEL..].as_ptr();
                tile::multiply(isa, count, depth, x, panel, out, accumulate);
            }
            (Values::Bf16(values), WeightPanels::Bf16(_)) => {
                let x = Strided { start: values[first_row * depth..].as_ptr(), stride: depth };
                bf16::multiply(count, depth, x, weight.bf16_panel(panel), out, accumulate);
            }
            _ => unreachable!("operands and weights of one device have one precision"),
        }
    }
}
