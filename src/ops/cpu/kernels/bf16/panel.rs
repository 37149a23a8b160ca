//! Panels of pairs.

/// A panel `[depth / 2][PANEL][2]`, and the one that is multiplied after it.
#[derive(Clone, Copy)]
pub(in crate::ops::cpu) struct PairPanel {
    pub(in crate::ops::cpu) start: *const u32,
    /// Null where there is none. Never read, only prefetched.
    pub(in crate::ops::cpu) next: *const u32,
}
