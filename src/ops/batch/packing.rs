//! Token sequences laid end to end without padding, common prefixes once.

use std::ops::Range;

/// Shortest common prefix that is shared. Below that, the extra segment costs attention more than the
/// tokens save.
const MIN_SHARED: usize = 16;

/// A stretch of tokens that are computed once: what one or more sequences have in common, after what
/// their parent segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The segment before this one in every sequence that holds it.
    pub parent: Option<usize>,
    /// Position in its sequences of the segment's first token.
    pub first_position: usize,
    /// Packed rows of the segment's tokens.
    pub rows: Range<usize>,
}

/// Sequences as a forest of segments, parents before children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    ids: Vec<u32>,
    positions: Vec<usize>,
    segments: Vec<Segment>,
    /// Segment that holds each sequence's last token, and that token's row.
    ends: Vec<(usize, usize)>,
}

impl Packing {
    /// Lays `sequences` end to end, each whole. `None` if there is no sequence, or an empty one.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S]) -> Option<Self> {
        let mut packing = Self::empty(sequences)?;
        for sequence in sequences {
            let segment = packing.push(sequence.as_ref(), 0, None);
            packing.ends.push((segment, packing.ids.len() - 1));
        }
        Some(packing)
    }

    /// As [`Packing::new`], with tokens that sequences have in common from their start packed once.
    /// Takes `O(n log n)` comparisons of sequences.
    pub fn shared<S: AsRef<[u32]>>(sequences: &[S]) -> Option<Self> {
        let mut packing = Self::empty(sequences)?;
        packing.ends = vec![(0, 0); sequences.len()];
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by(|&a, &b| sequences[a].as_ref().cmp(sequences[b].as_ref()));
        let sorted: Vec<(usize, &[u32])> =
            order.into_iter().map(|index| (index, sequences[index].as_ref())).collect();
        packing.share(&sorted, 0, None);
        Some(packing)
    }

    fn empty<S: AsRef<[u32]>>(sequences: &[S]) -> Option<Self> {
        let usable = !sequences.is_empty() && sequences.iter().all(|s| !s.as_ref().is_empty());
        usable.then(|| Self {
            ids: Vec::new(),
            positions: Vec::new(),
            segments: Vec::new(),
            ends: Vec::new(),
        })
    }

    fn push(&mut self, tokens: &[u32], first_position: usize, parent: Option<usize>) -> usize {
        let start = self.ids.len();
        self.ids.extend_from_slice(tokens);
        self.positions.extend(first_position..first_position + tokens.len());
        self.segments.push(Segment { parent, first_position, rows: start..self.ids.len() });
        self.segments.len() - 1
    }

    /// Packs sorted sequences that have their first `depth` tokens in common, which `parent` holds.
    fn share(&mut self, mut sorted: &[(usize, &[u32])], depth: usize, parent: Option<usize>) {
        while let Some(&(_, first)) = sorted.first() {
            // The longest run of sequences that share at least MIN_SHARED tokens, or all of one.
            let own = first.len() - depth;
            let wanted = depth + own.min(MIN_SHARED);
            let count = sorted.iter().take_while(|(_, s)| s.starts_with(&first[..wanted])).count();
            let (group, rest) = sorted.split_at(count);
            sorted = rest;
            let last = group[count - 1].1;
            let common = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b);
            let end = depth + common.count();
            let segment = self.push(&first[depth..end], depth, parent);
            let row = self.ids.len() - 1;
            let whole = group.iter().take_while(|(_, s)| s.len() == end).count();
            for &(index, _) in &group[..whole] {
                self.ends[index] = (segment, row);
            }
            self.share(&group[whole..], end, Some(segment));
        }
    }

    /// Token ids `[rows]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Position of each row's token in its sequences, from 0: `[rows]`.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// The segments, parents before children.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of packed tokens: those that are computed.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Tokens of the longest sequence.
    pub fn length(&self) -> usize {
        self.positions.iter().max().map_or(0, |last| last + 1)
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.ends.len()
    }

    /// Row of each sequence's last token, the one that is pooled: `[sequences]`.
    pub fn last_rows(&self) -> Vec<usize> {
        self.ends.iter().map(|&(_, row)| row).collect()
    }

    /// Segment of each sequence's last token: `[sequences]`.
    pub fn last_segments(&self) -> impl Iterator<Item = usize> {
        self.ends.iter().map(|&(segment, _)| segment)
    }

    /// Rows of a sequence's tokens, in their order.
    pub fn rows_of(&self, sequence: usize) -> Vec<usize> {
        self.rows_through(self.ends[sequence].0)
    }

    /// Rows of the tokens before and in a segment, from position 0 on.
    pub fn rows_through(&self, segment: usize) -> Vec<usize> {
        let chain = std::iter::successors(Some(segment), |&s| self.segments[s].parent);
        let mut spans: Vec<_> = chain.map(|s| self.segments[s].rows.clone()).collect();
        spans.reverse();
        spans.into_iter().flatten().collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The tokens of a sequence, read back along its segments.
    fn unpacked(packing: &Packing, index: usize) -> Vec<u32> {
        packing.rows_of(index).into_iter().map(|row| packing.ids()[row]).collect()
    }

    fn sequence(parts: &[(u32, usize)]) -> Vec<u32> {
        parts.iter().flat_map(|&(token, count)| vec![token; count]).collect()
    }

    #[test]
    fn common_prefixes_are_packed_once_and_every_sequence_reads_back() {
        let sequences = [
            sequence(&[(1, 40), (2, 5)]),
            sequence(&[(1, 40), (3, 30), (4, 1)]),
            sequence(&[(9, 3)]),
            sequence(&[(1, 40), (3, 30), (5, 2)]),
            sequence(&[(1, 40)]),
            sequence(&[(9, 3), (1, 2)]),
            sequence(&[(1, 40), (2, 5)]),
        ];
        for packing in [Packing::new(&sequences).unwrap(), Packing::shared(&sequences).unwrap()] {
            assert_eq!(packing.sequences(), sequences.len());
            for (index, sequence) in sequences.iter().enumerate() {
                assert_eq!(unpacked(&packing, index), *sequence, "{index}");
                let segment = packing.last_segments().nth(index).unwrap();
                assert!(packing.segments()[segment].rows.contains(&packing.last_rows()[index]));
            }
            for (row, &position) in packing.positions().iter().enumerate() {
                let segment = packing.segments().iter().find(|s| s.rows.contains(&row)).unwrap();
                assert_eq!(position, segment.first_position + row - segment.rows.start);
            }
        }
        // 40 ones, 5 twos, 30 threes, 1 four, 2 fives, 3 nines, and 2 ones after them.
        assert_eq!(Packing::shared(&sequences).unwrap().rows(), 83);
        assert_eq!(Packing::new(&sequences).unwrap().rows(), 45 + 71 + 3 + 72 + 40 + 5 + 45);
    }

    #[test]
    fn short_common_prefixes_are_not_worth_a_segment() {
        let sequences = [sequence(&[(1, 15), (2, 5)]), sequence(&[(1, 15), (3, 5)])];
        assert_eq!(Packing::shared(&sequences).unwrap().rows(), 40);
    }

    #[test]
    fn nothing_to_pack() {
        assert_eq!(Packing::shared::<Vec<u32>>(&[]), None);
        assert_eq!(Packing::shared(&[vec![1], vec![]]), None);
    }
}
