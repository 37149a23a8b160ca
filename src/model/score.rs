//! Scores, and what they are made of.

/// The result for one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// The reward: normalised where the checkpoint asks for it. May be non-finite where the weights
    /// are; callers must check before they pass it on.
    pub reward: f32,
    /// The latent; `None` for a standard head. That of an ensemble is its first member's.
    pub latent: Option<Latent>,
    /// What the reward was made of.
    pub parts: Parts,
}

impl Score {
    /// Every number of it.
    pub fn values(&self) -> impl Iterator<Item = f32> {
        let (objectives, members): (&[f32], &[Member]) = match &self.parts {
            Parts::Whole => (&[], &[]),
            Parts::Objectives(values) => (values, &[]),
            Parts::Members(members) => (&[], members),
        };
        let members = members
            .iter()
            .flat_map(|Member { reward, latent }| std::iter::once(reward).chain(numbers(latent)));
        std::iter::once(&self.reward)
            .chain(numbers(&self.latent))
            .chain(objectives)
            .chain(members)
            .copied()
    }
}

fn numbers(latent: &Option<Latent>) -> impl Iterator<Item = &f32> {
    latent.iter().flat_map(|latent| latent.mean.iter().chain(&latent.sigma))
}

/// What a reward was made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Parts {
    /// One output of one head.
    #[default]
    Whole,
    /// Outputs of a head with several labels, in their order, before they are weighted.
    Objectives(Vec<f32>),
    /// What each member of an ensemble gives, in their order.
    Members(Vec<Member>),
}

/// What one member of an ensemble gives for a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its reward, normalised where its checkpoint asks for it.
    pub reward: f32,
    /// Its latent; `None` for a standard head.
    pub latent: Option<Latent>,
}

/// The posterior of one sequence's latent.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    /// Posterior mean `[d]`.
    pub mean: Vec<f32>,
    /// Posterior standard deviation `[d]`.
    pub sigma: Vec<f32>,
}

impl Latent {
    /// KL divergence of the posterior from `N(0, I)`, in nats: the sum of [`Latent::divergences`].
    pub fn divergence(&self) -> f32 {
        self.divergences().sum::<f64>() as f32
    }

    /// KL divergence in each dimension, in nats: `1/2 (mu^2 + sigma^2 - 1 - 2 ln sigma)`. Infinite where a sigma
    /// underflowed to 0.
    pub fn divergences(&self) -> impl Iterator<Item = f64> {
        self.mean.iter().zip(&self.sigma).map(|(&mean, &sigma)| {
            let (mean, sigma) = (f64::from(mean), f64::from(sigma));
            0.5 * (mean * mean + sigma * sigma - 1.0 - 2.0 * sigma.ln())
        })
    }
}
