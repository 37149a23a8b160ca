//! Stands for the bf16 kernels on processors that have none: `CpuOps::new` refuses the precision there.

use std::ops::Range;

use super::panel::PairPanel;
use crate::ops::cpu::kernels::tile::Strided;

pub(in crate::ops::cpu) unsafe fn multiply(
    _: usize,
    _: usize,
    _: Strided<*const u16>,
    panel: PairPanel,
    _: Strided<*mut f32>,
    _: bool,
) {
    unreachable!("no bf16 device, {:?} {:?}", panel.start, panel.next)
}

pub(in crate::ops::cpu) unsafe fn multiply_gated(
    _: usize,
    _: usize,
    _: Strided<*const u16>,
    _: PairPanel,
    _: Strided<*mut u16>,
    _: usize,
) {
    unreachable!("no bf16 device")
}

pub(in crate::ops::cpu) fn softmax_block(
    _: &[f32],
    _: Range<usize>,
    _: &mut f32,
    _: &mut f32,
    _: &mut [u16],
) -> f32 {
    unreachable!("no bf16 device")
}

pub(in crate::ops::cpu) fn round(_: &[f32], _: &mut [u16]) {
    unreachable!("no bf16 device")
}
