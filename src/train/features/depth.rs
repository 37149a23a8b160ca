//! Where a model is cut into what is frozen and what is trained.

/// Where a model is cut: what is before is frozen, and gives the features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Hidden states before the final norm at the last token: one row a text.
    Pooled,
    /// What enters this layer: one row a token.
    Entering(usize),
}
