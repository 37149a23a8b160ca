//! Where attention finds a batch's queries and keys: the tables that `kernels/packed_attention.cu` reads.

use std::sync::Arc;

use super::error::CudaError;
use super::matrices::Rotation;
use super::memory::{DeviceBuffer, Memory};
use crate::layer::AttentionShape;
use crate::ops::batch::Packing;

/// Rows of a tile of the kernel: pairs of a query and a head of its group.
const TILE_ROWS: usize = 64;

/// A batch's tables on the device.
#[derive(Debug)]
pub struct CudaLayout {
    pub(super) shape: AttentionShape,
    pub(super) rotation: Arc<Rotation>,
    /// Position of each packed row, and of each sequence's last row.
    pub(super) positions: u64,
    pub(super) last_positions: u64,
    /// Tiles of all rows, and of each sequence's last row.
    pub(super) tiles: Tiles,
    pub(super) last_tiles: Tiles,
    pub(super) path_starts: u64,
    pub(super) stretches: u64,
    _tables: DeviceBuffer<i32>,
}

/// `{row of the first query, queries, position of the first, path}` each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    pub(super) address: u64,
    pub(super) count: usize,
}

/// The tables in host memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AttentionTables {
    positions: Vec<i32>,
    last_positions: Vec<i32>,
    pub(super) tiles: Vec<[i32; 4]>,
    pub(super) last_tiles: Vec<[i32; 4]>,
    path_starts: Vec<i32>,
    stretches: Vec<[i32; 2]>,
}

impl AttentionTables {
    pub(super) fn new(packing: &Packing, shape: &AttentionShape) -> Self {
        Self::of_group(packing, shape.heads / shape.key_value_heads)
    }

    fn of_group(packing: &Packing, group: usize) -> Self {
        let positions: Vec<i32> = packing.positions().iter().map(|&p| p as i32).collect();
        let segments = packing.segments();
        let (mut tiles, mut path_starts, mut stretches) = (Vec::new(), vec![0], Vec::new());
        for (path, segment) in segments.iter().enumerate() {
            let chain = std::iter::successors(Some(path), |&index| segments[index].parent);
            let begin = stretches.len();
            stretches.extend(chain.map(|index| {
                let segment = &segments[index];
                [segment.rows.start as i32, segment.first_position as i32]
            }));
            stretches[begin..].reverse();
            path_starts.push(stretches.len() as i32);
            let most = TILE_ROWS / group;
            tiles.extend(segment.rows.clone().step_by(most).map(|row| {
                let count = most.min(segment.rows.end - row);
                [row as i32, count as i32, positions[row], path as i32]
            }));
        }
        // Those that see the most keys first, so that the last ones to end are short.
        tiles.sort_by_key(|&[_, count, first, _]| std::cmp::Reverse(first + count));
        let last_positions: Vec<i32> =
            packing.last_rows().into_iter().map(|row| positions[row]).collect();
        let last = packing.last_segments().zip(&last_positions).enumerate();
        let last_tiles =
            last.map(|(row, (path, &position))| [row as i32, 1, position, path as i32]).collect();
        Self { positions, last_positions, tiles, last_tiles, path_starts, stretches }
    }
}

impl CudaLayout {
    pub(super) fn new(
        memory: &Arc<Memory>,
        tables: &AttentionTables,
        shape: &AttentionShape,
        rotation: Arc<Rotation>,
    ) -> Result<Self, CudaError> {
        let mut values = Vec::new();
        let mut place = |table: &[i32]| {
            // The kernel reads four numbers at a time.
            values.resize(values.len().next_multiple_of(4), 0);
            let start = values.len() as u64 * 4;
            values.extend_from_slice(table);
            start
        };
        let offsets = [
            place(&tables.positions),
            place(&tables.last_positions),
            place(tables.tiles.as_flattened()),
            place(tables.last_tiles.as_flattened()),
            place(&tables.path_starts),
            place(tables.stretches.as_flattened()),
        ];
        let uploaded = memory.upload(&values)?;
        let [positions, last_positions, tiles, last_tiles, path_starts, stretches] =
            offsets.map(|offset| uploaded.address() + offset);
        Ok(Self {
            shape: *shape,
            rotation,
            positions,
            last_positions,
            tiles: Tiles { address: tiles, count: tables.tiles.len() },
            last_tiles: Tiles { address: last_tiles, count: tables.last_tiles.len() },
            path_starts,
            stretches,
            _tables: uploaded,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every query is in one tile, and finds the row of each position up to its own along its path.
    #[test]
    fn tables_lead_every_query_to_its_keys() {
        let texts: Vec<Vec<u32>> = [(1, 40, 7), (2, 40, 300), (3, 70, 60), (4, 70, 5), (5, 130, 1)]
            .iter()
            .map(|&(tag, common, own)| {
                let shared = (0..common).map(|i| 10 + i);
                shared.chain((0..own).map(|i| 1000 * tag + i)).collect()
            })
            .collect();
        for packing in [Packing::new(&texts).unwrap(), Packing::shared(&texts).unwrap()] {
            for group in [1, 3, 4] {
                let tables = AttentionTables::of_group(&packing, group);
                let row_at = |path: i32, position: i32| {
                    let bounds = &tables.path_starts[path as usize..][..2];
                    let path = &tables.stretches[bounds[0] as usize..bounds[1] as usize];
                    let [row, first] = *path.iter().rfind(|[_, first]| *first <= position).unwrap();
                    (row + position - first) as usize
                };
                let mut seen = vec![0; packing.rows()];
                for &[row, count, first, path] in &tables.tiles {
                    assert!(count >= 1 && count as usize * group <= TILE_ROWS);
                    for query in 0..count {
                        seen[(row + query) as usize] += 1;
                        assert_eq!(row_at(path, first + query), (row + query) as usize);
                    }
                }
                assert!(seen.iter().all(|&count| count == 1));
                for (text, &[row, count, last, path]) in texts.iter().zip(&tables.last_tiles) {
                    assert_eq!((count, last as usize + 1), (1, text.len()));
                    assert_eq!(tables.last_positions[row as usize], last);
                    for (position, id) in text.iter().enumerate() {
                        assert_eq!(packing.ids()[row_at(path, position as i32)], *id);
                    }
                }
            }
        }
    }
}
