//! Which training pairs an epoch has, and in which order.

use anyhow::Context;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::WeightedFile;
use crate::train::data::EncodedPair;

/// The epochs of a run, one after the other. They follow from the pairs, the weights of their files and the seed alone.
pub(in crate::train) struct Epochs {
    random: ChaCha8Rng,
    /// Numbers of the pairs that every epoch has, each as often as every epoch has it.
    always: Vec<usize>,
    /// Per file, the numbers of its pairs.
    files: Vec<Vec<usize>>,
    /// Per file, how many of its pairs an epoch has once more.
    more: Vec<usize>,
}

impl Epochs {
    /// # Errors
    /// A file so light that an epoch would have none of its pairs.
    pub(in crate::train) fn new(
        train: &[EncodedPair],
        weights: &[WeightedFile],
        seed: u64,
    ) -> anyhow::Result<Self> {
        let mut files = vec![Vec::new(); weights.len()];
        let mut always = Vec::with_capacity(train.len());
        for (number, pair) in train.iter().enumerate() {
            let file = weights.iter().position(|file| *file.path == *pair.origin.file);
            let file = file.with_context(|| format!("data.files: {} is of none", pair.origin))?;
            files[file].push(number);
            always.extend(std::iter::repeat_n(number, weights[file].weight as usize));
        }
        let mut more = Vec::with_capacity(files.len());
        for (WeightedFile { path, weight }, pairs) in weights.iter().zip(&files) {
            let count = (weight.fract() * pairs.len() as f64).round() as usize;
            anyhow::ensure!(
                *weight >= 1.0 || count > 0 || pairs.is_empty(),
                "data.files: {}: with a weight of {weight} an epoch has none of its {} training pairs",
                path.display(),
                pairs.len()
            );
            more.push(count);
        }
        Ok(Self { random: ChaCha8Rng::seed_from_u64(seed), always, files, more })
    }

    /// Pairs of an epoch, the same number in each.
    pub(in crate::train) fn pairs(&self) -> usize {
        self.always.len() + self.more.iter().sum::<usize>()
    }

    /// The next epoch: numbers of training pairs.
    pub(in crate::train) fn next(&mut self) -> Vec<usize> {
        self.always.shuffle(&mut self.random);
        let mut order = self.always.clone();
        for (pairs, &more) in self.files.iter_mut().zip(&self.more) {
            order.extend_from_slice(pairs.partial_shuffle(&mut self.random, more).0);
        }
        if order.len() > self.always.len() {
            order.shuffle(&mut self.random);
        }
        order
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::train::data::Origin;

    fn pairs(files: &[(&str, usize)]) -> Vec<EncodedPair> {
        let of = |(file, count): &(&str, usize)| {
            let file: std::sync::Arc<Path> = Path::new(file).into();
            (1..=*count).map(move |line| EncodedPair {
                chosen: vec![1],
                rejected: vec![2],
                prompt: 0,
                subset: None,
                margin: None,
                origin: Origin { file: file.clone(), line },
            })
        };
        files.iter().flat_map(of).collect()
    }

    fn weighted(files: &[(&str, f64)]) -> Vec<WeightedFile> {
        let of = |&(path, weight): &(&str, f64)| WeightedFile { path: path.into(), weight };
        files.iter().map(of).collect()
    }

    fn times(order: &[usize], pairs: usize) -> Vec<usize> {
        (0..pairs).map(|pair| order.iter().filter(|&&one| one == pair).count()).collect()
    }

    #[test]
    fn a_weight_is_how_often_a_pair_is_seen() {
        let train = pairs(&[("half", 10), ("plain", 7), ("more", 8)]);
        let weights = weighted(&[("half", 0.5), ("plain", 1.0), ("more", 2.5)]);
        let mut epochs = Epochs::new(&train, &weights, 3).unwrap();
        assert_eq!(epochs.pairs(), 5 + 7 + 20);
        let orders: Vec<Vec<usize>> = (0..200).map(|_| epochs.next()).collect();
        let mut sums = vec![0; train.len()];
        for order in &orders {
            assert_eq!(order.len(), epochs.pairs());
            let times = times(order, train.len());
            assert!(times[..10].iter().all(|&count| count <= 1), "{times:?}");
            assert!(times[10..17].iter().all(|&count| count == 1), "{times:?}");
            assert!(times[17..].iter().all(|&count| count == 2 || count == 3), "{times:?}");
            assert_eq!(times[..10].iter().sum::<usize>(), 5);
            sums.iter_mut().zip(&times).for_each(|(sum, count)| *sum += count);
        }
        // Anew in each epoch: no pair is left out for long. 100 +- 5 standard deviations of 7.
        let chosen = sums[..10].iter().chain(&sums[17..]);
        assert!(chosen.clone().all(|&sum| (65..135).contains(&(sum % 400))), "{sums:?}");
        assert_ne!(orders[0], orders[1]);

        let mut again = Epochs::new(&train, &weights, 3).unwrap();
        assert!(orders.iter().all(|order| *order == again.next()));
        assert_ne!(Epochs::new(&train, &weights, 4).unwrap().next(), orders[0]);
    }

    #[test]
    fn files_without_weights_are_shuffled_together() {
        let train = pairs(&[("one", 6), ("two", 5)]);
        let weights = weighted(&[("one", 1.0), ("two", 1.0)]);
        let mut epochs = Epochs::new(&train, &weights, 9).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(9);
        let mut order: Vec<usize> = (0..11).collect();
        for _ in 0..3 {
            order.shuffle(&mut random);
            assert_eq!(epochs.next(), order);
        }
    }

    #[test]
    fn a_file_that_is_never_seen_is_an_error() {
        let train = pairs(&[("light", 4), ("other", 5)]);
        let weights = weighted(&[("light", 0.1), ("other", 1.0)]);
        let said = Epochs::new(&train, &weights, 0).err().unwrap().to_string();
        assert!(said.contains("light") && said.contains("0.1") && said.contains('4'), "{said}");
        // Where the split held out all of it there is nothing to be seen.
        assert!(Epochs::new(&train[4..], &weights, 0).is_ok());
    }
}
