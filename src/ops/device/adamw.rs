//! What a step of the optimiser takes on any device.

/// A step of AdamW (Loshchilov and Hutter 2019), the same for every parameter.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// What weight decay leaves of a parameter that decays.
    pub keep: f32,
    /// Factor of every gradient.
    pub clip: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// The learning rate, corrected for the first moment's start at 0.
    pub rate: f32,
    /// The same for the root of the second moment.
    pub root_correction: f32,
    /// Added to that root.
    pub epsilon: f32,
}

/// What a device keeps of a parameter, in f32, each of its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateTensor {
    /// The values.
    Values,
    /// The sum of its gradients.
    Gradient,
    /// The first moment.
    FirstMoment,
    /// The second moment.
    SecondMoment,
}
