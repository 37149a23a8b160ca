//! Which points lie within a radius of each other, and the clusters that they make.

use super::gram::{WORD, bits};

/// The neighbour graph of a set of points: one bit for each ordered pair, itself included.
///
/// Takes `N^2 / 8` bytes, however dense the neighbourhoods are: 50 MB at `N = 20_000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourGraph {
    rows: usize,
    words_per_row: usize,
    adjacency: Vec<u64>,
}

impl NeighbourGraph {
    /// A graph without edges but those of each point to itself.
    pub(in crate::monitor) fn isolated(rows: usize) -> Self {
        let words_per_row = rows.div_ceil(WORD);
        let mut graph = Self { rows, words_per_row, adjacency: vec![0; rows * words_per_row] };
        for row in 0..rows {
            graph.connect(row, row / WORD * WORD, 1 << (row % WORD));
        }
        graph
    }

    /// Makes neighbours of `row` those of the [`WORD`] points from `first` whose bits are set.
    pub(in crate::monitor) fn connect(&mut self, row: usize, first: usize, neighbours: u64) {
        let word = &mut self.adjacency[row * self.words_per_row + first / WORD..];
        let shift = first % WORD;
        word[0] |= neighbours << shift;
        if shift > 0 && neighbours >> (WORD - shift) != 0 {
            word[1] |= neighbours >> (WORD - shift);
        }
    }

    /// Makes `j` a neighbour of `i` wherever `i` is one of `j`, given that edges were only entered
    /// for `i < j`.
    pub(in crate::monitor) fn mirror(&mut self) {
        let width = self.words_per_row;
        for top in 0..width {
            for right in top..width {
                let mut square = [0_u64; WORD];
                let rows = WORD.min(self.rows - top * WORD);
                for (row, word) in square.iter_mut().take(rows).enumerate() {
                    *word = self.adjacency[(top * WORD + row) * width + right];
                }
                if square.iter().all(|word| *word == 0) {
                    continue;
                }
                transpose(&mut square);
                let rows = WORD.min(self.rows - right * WORD);
                for (row, word) in square.iter().take(rows).enumerate() {
                    self.adjacency[(right * WORD + row) * width + top] |= word;
                }
            }
        }
    }

    fn words(&self, row: usize) -> &[u64] {
        &self.adjacency[row * self.words_per_row..][..self.words_per_row]
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no points.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The neighbours of a point, itself included, in ascending order.
    ///
    /// # Panics
    /// `row` that is no point's.
    pub fn neighbours(&self, row: usize) -> impl Iterator<Item = usize> {
        let words = self.words(row).iter().enumerate();
        words.flat_map(|(index, word)| bits(*word).map(move |bit| index * WORD + bit))
    }

    /// The cluster of each point by DBSCAN (Ester et al. 1996), numbered without gaps from 0; `None`
    /// is noise. A point with `min_samples` neighbours, itself included, is a core point; clusters are
    /// numbered by their earliest core point, and a border point that two can claim belongs to the
    /// first, as in scikit-learn.
    ///
    /// Costs `N^2 / 64` word operations at most.
    pub fn clusters(&self, min_samples: usize) -> Vec<Option<usize>> {
        let degree = |row| self.words(row).iter().map(|word| word.count_ones() as usize).sum();
        let is_core: Vec<bool> =
            (0..self.rows).map(|row| -> usize { degree(row) }).map(|n| n >= min_samples).collect();
        let mut labels = vec![None; self.rows];
        let mut unclaimed = vec![u64::MAX; self.words_per_row];
        let mut reached = Vec::new();
        let mut clusters = 0;
        for start in 0..self.rows {
            if !is_core[start] || labels[start].is_some() {
                continue;
            }
            labels[start] = Some(clusters);
            unclaimed[start / WORD] &= !(1 << (start % WORD));
            reached.push(start);
            while let Some(core) = reached.pop() {
                for (index, (word, unclaimed)) in
                    self.words(core).iter().zip(&mut unclaimed).enumerate()
                {
                    let claimed = word & *unclaimed;
                    *unclaimed &= !claimed;
                    for point in bits(claimed).map(|bit| index * WORD + bit) {
                        labels[point] = Some(clusters);
                        if is_core[point] {
                            reached.push(point);
                        }
                    }
                }
            }
            clusters += 1;
        }
        labels
    }
}

/// Exchanges rows and columns of a matrix of bits, half by half (Warren, Hacker's Delight, 7-3).
fn transpose(square: &mut [u64; WORD]) {
    let mut width = WORD / 2;
    let mut mask = u64::MAX >> width;
    while width > 0 {
        for row in (0..WORD).filter(|row| row & width == 0) {
            let exchanged = (square[row] >> width ^ square[row + width]) & mask;
            square[row] ^= exchanged << width;
            square[row + width] ^= exchanged;
        }
        width /= 2;
        mask ^= mask << width;
    }
}
