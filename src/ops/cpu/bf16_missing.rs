//! Stands for the bf16 kernels on processors that have none: `CpuOps::new` refuses the precision there.

use std::ops::Range;

use super::tile::Strided;

#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) start: *const u32,
    pub(super) next: *const u32,
}

pub(super) unsafe fn multiply(
    _: usize,
    _: usize,
    _: Strided<*const u16>,
    panel: Panel,
    _: Strided<*mut f32>,
    _: bool,
) {
    unreachable!("no bf16 device, {:?} {:?}", panel.start, panel.next)
}

pub(super) unsafe fn multiply_gated(
    _: usize,
    _: usize,
    _: Strided<*const u16>,
    _: Panel,
    _: Strided<*mut u16>,
    _: usize,
) {
    unreachable!("no bf16 device")
}

pub(super) fn softmax_block(
    _: &[f32],
    _: Range<usize>,
    _: &mut f32,
    _: &mut f32,
    _: &mut [u16],
) -> f32 {
    unreachable!("no bf16 device")
}

pub(super) fn round(_: &[f32], _: &mut [u16]) {
    unreachable!("no bf16 device")
}
