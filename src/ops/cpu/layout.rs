//! Where a batch's keys and values lie.
//!
//! Keys are walked in blocks of [`KEY_BLOCK`] that start at absolute positions 0, 64, 128, ... A segment
//! reads the full blocks of its ancestors in place; the block in which it begins is its own, and holds a
//! copy of the ancestors' keys before it. So every query sees blocks with the same keys in the same lanes,
//! whether its prefix is shared or not.

use std::ops::Range;

use crate::ops::batch::Packing;

/// Keys of a block; a multiple of the panel width.
pub(super) const KEY_BLOCK: usize = 64;

/// What attention needs to know of a batch.
#[derive(Debug)]
pub struct AttentionLayout {
    /// Position of each packed row, and of each sequence's last row.
    positions: Vec<usize>,
    last_positions: Vec<usize>,
    /// Segment of each sequence's last row.
    last_segments: Vec<usize>,
    segments: Vec<SegmentKeys>,
    length: usize,
    /// Row `r` is copied to `slots[slot_starts[r] .. slot_starts[r + 1]]`: block times [`KEY_BLOCK`] plus
    /// lane.
    slot_starts: Vec<usize>,
    slots: Vec<usize>,
    blocks: usize,
}

/// The keys that a segment's queries see.
#[derive(Debug)]
struct SegmentKeys {
    rows: Range<usize>,
    first_position: usize,
    /// Blocks from position 0 on.
    blocks: Vec<usize>,
}

/// Queries at consecutive positions of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queries<'a> {
    /// Position of the first one.
    pub(super) first: usize,
    pub(super) count: usize,
    /// Row of the first one.
    pub(super) row: usize,
    /// Blocks that hold their keys, from position 0 on.
    pub(super) blocks: &'a [usize],
}

impl AttentionLayout {
    pub(super) fn new(packing: &Packing) -> Self {
        let positions = packing.positions().to_vec();
        let last_rows = packing.last_rows();
        let mut segments: Vec<SegmentKeys> = Vec::with_capacity(packing.segments().len());
        let mut cells = Vec::with_capacity(positions.len());
        let mut blocks = 0;
        for segment in packing.segments() {
            let first = segment.first_position;
            let end = first + segment.rows.len();
            let whole = first / KEY_BLOCK;
            let mut own: Vec<usize> =
                segment.parent.map_or_else(Vec::new, |p| segments[p].blocks[..whole].to_vec());
            let added = end.div_ceil(KEY_BLOCK) - whole;
            own.extend(blocks..blocks + added);
            blocks += added;
            let slot = |position| own[position / KEY_BLOCK] * KEY_BLOCK + position % KEY_BLOCK;
            let mut ancestor = segment.parent;
            let mut rest = first;
            while rest > whole * KEY_BLOCK {
                let Some(index) = ancestor else { break };
                let keys = &segments[index];
                let start = keys.first_position.max(whole * KEY_BLOCK);
                let row = |position| keys.rows.start + position - keys.first_position;
                cells.extend((start..rest).map(|position| (row(position), slot(position))));
                rest = keys.first_position.min(rest);
                ancestor = packing.segments()[index].parent;
            }
            cells.extend((first..end).map(|p| (segment.rows.start + p - first, slot(p))));
            segments.push(SegmentKeys {
                rows: segment.rows.clone(),
                first_position: first,
                blocks: own,
            });
        }
        cells.sort_unstable();
        let mut slot_starts = vec![0; positions.len() + 1];
        for &(row, _) in &cells {
            slot_starts[row + 1] += 1;
        }
        for row in 0..positions.len() {
            slot_starts[row + 1] += slot_starts[row];
        }
        Self {
            last_positions: last_rows.into_iter().map(|row| positions[row]).collect(),
            last_segments: packing.last_segments().collect(),
            length: packing.length(),
            positions,
            segments,
            slot_starts,
            slots: cells.into_iter().map(|(_, slot)| slot).collect(),
            blocks,
        }
    }

    /// Tokens of the longest sequence.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Packed rows.
    pub(super) fn rows(&self) -> usize {
        self.positions.len()
    }

    /// Position of each packed row.
    pub(in crate::ops) fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Position of each sequence's last row.
    pub(in crate::ops) fn last_positions(&self) -> &[usize] {
        &self.last_positions
    }

    /// Blocks of the batch.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Blocks with lanes that hold no key.
    pub(super) fn partial_blocks(&self) -> impl Iterator<Item = usize> {
        let end = |keys: &SegmentKeys| keys.first_position + keys.rows.len();
        let partial = move |keys: &&SegmentKeys| !end(keys).is_multiple_of(KEY_BLOCK);
        self.segments.iter().filter(partial).filter_map(|keys| keys.blocks.last().copied())
    }

    /// Where a row's key and value are kept.
    pub(super) fn slots(&self, row: usize) -> impl Iterator<Item = (usize, usize)> {
        let slots = &self.slots[self.slot_starts[row]..self.slot_starts[row + 1]];
        slots.iter().map(|slot| (slot / KEY_BLOCK, slot % KEY_BLOCK))
    }

    /// The given packed rows as queries, at most `limit` at a time.
    pub(super) fn queries(
        &self,
        rows: Range<usize>,
        limit: usize,
    ) -> impl Iterator<Item = Queries<'_>> {
        let begin = self.segments.partition_point(|keys| keys.rows.end <= rows.start);
        let end = rows.end;
        let touched = self.segments[begin..].iter().take_while(move |keys| keys.rows.start < end);
        touched.flat_map(move |keys| {
            let own = keys.rows.start.max(rows.start)..keys.rows.end.min(rows.end);
            let last = own.end;
            own.step_by(limit).map(move |row| Queries {
                first: keys.first_position + row - keys.rows.start,
                count: limit.min(last - row),
                row,
                blocks: &keys.blocks,
            })
        })
    }

    /// The last row of every sequence as a query; rows count sequences.
    pub(super) fn last_queries(&self) -> impl Iterator<Item = Queries<'_>> {
        let last = self.last_segments.iter().zip(&self.last_positions).enumerate();
        last.map(|(row, (&segment, &first))| Queries {
            first,
            count: 1,
            row,
            blocks: &self.segments[segment].blocks,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every query finds the key of each position up to its own where the layout says.
    #[test]
    fn keys_lie_at_their_positions() {
        let texts: Vec<Vec<u32>> = [(1, 40, 7), (2, 40, 300), (3, 70, 60), (4, 70, 5), (5, 130, 1)]
            .iter()
            .map(|&(tag, common, own)| {
                let shared = (0..common).map(|i| 10 + i);
                shared.chain((0..own).map(|i| 1000 * tag + i)).collect()
            })
            .collect();
        for packing in [Packing::new(&texts).unwrap(), Packing::shared(&texts).unwrap()] {
            let layout = AttentionLayout::new(&packing);
            let mut kept = vec![None; layout.blocks() * KEY_BLOCK];
            for row in 0..layout.rows() {
                for (block, lane) in layout.slots(row) {
                    let previous = kept[block * KEY_BLOCK + lane].replace(packing.ids()[row]);
                    assert_eq!(previous, None, "two rows in one slot");
                }
            }
            for (text, queries) in texts.iter().zip(layout.last_queries()) {
                assert_eq!(queries.first + 1, text.len());
                for (position, id) in text.iter().enumerate() {
                    let block = queries.blocks[position / KEY_BLOCK];
                    assert_eq!(kept[block * KEY_BLOCK + position % KEY_BLOCK], Some(*id));
                }
            }
            let covered: usize = layout.queries(0..layout.rows(), 48).map(|q| q.count).sum();
            assert_eq!(covered, layout.rows());
        }
    }
}
