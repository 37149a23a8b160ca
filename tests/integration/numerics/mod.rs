//! Arithmetic against PyTorch, and batch invariance.

mod families;
mod gradients;
mod invariance;
mod latents;
mod loss;
mod parity;
mod steps;
