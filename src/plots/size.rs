//! The size of a plot.

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl Size {
    /// Of curves where nobody asks for another.
    pub const CURVE: Self = Self { width: 640, height: 360 };
    /// Of the latent map where nobody asks for another.
    pub const MAP: Self = Self { height: 480, ..Self::CURVE };
}
