//! Attention's way back: which keys are read by which queries, and its two kernels.

use std::sync::Arc;

use half::bf16;

use super::gpu::Gpu;
use super::tape::{Gradient, TapeGradients};
use crate::ops::batch::Packing;
use crate::ops::cuda::error::CudaError;
use crate::ops::cuda::kernels::attention_shared_bytes;
use crate::ops::cuda::launch::launch;
use crate::ops::cuda::layout::{AttentionTables, CudaLayout, Tiles};
use crate::ops::cuda::matrices::{CudaMatrix, CudaProjection};
use crate::ops::cuda::memory::{DeviceBuffer, Memory};
use crate::ops::device::Result;

/// Keys of a tile of the kernel.
const TILE_KEYS: usize = 64;

/// A batch in training.
#[derive(Debug)]
pub struct TrainingLayout {
    pub(super) forward: CudaLayout,
    /// The negative of the rotary table: it turns gradients back.
    pub(super) turned_back: Arc<DeviceBuffer<f32>>,
    key_tiles: Tiles,
    /// Of all rows' queries, and of each sequence's last row.
    readers: Readers,
    last_readers: Readers,
    _tables: DeviceBuffer<i32>,
}

/// Addresses of `reader_starts` and `readers` of the kernel.
#[derive(Debug, Clone, Copy)]
struct Readers {
    starts: u64,
    tiles: u64,
}

/// The tables in host memory.
#[derive(Debug, PartialEq, Eq)]
struct KeyTables {
    /// `{first row, count, position of the first, 0}`, all of one segment.
    key_tiles: Vec<[i32; 4]>,
    readers: ReaderTables,
    last_readers: ReaderTables,
}

/// Query tiles that read each key tile, in ascending order.
#[derive(Debug, PartialEq, Eq)]
struct ReaderTables {
    starts: Vec<i32>,
    tiles: Vec<i32>,
}

impl ReaderTables {
    /// Of key tiles, each with its segment.
    fn new(key_tiles: &[([i32; 4], usize)], query_tiles: &[[i32; 4]], packing: &Packing) -> Self {
        let segments = packing.segments();
        let mut through = vec![Vec::new(); segments.len()];
        for (index, &[_, _, _, path]) in query_tiles.iter().enumerate() {
            let chain = std::iter::successors(Some(path as usize), |&s| segments[s].parent);
            chain.for_each(|segment| through[segment].push(index));
        }
        let (mut starts, mut tiles) = (vec![0], Vec::new());
        for &([_, _, first_key, _], segment) in key_tiles {
            tiles.extend(through[segment].iter().filter_map(|&index| {
                let [_, queries, first, _] = query_tiles[index];
                (first + queries > first_key).then_some(index as i32)
            }));
            starts.push(tiles.len() as i32);
        }
        Self { starts, tiles }
    }
}

impl KeyTables {
    fn new(tables: &AttentionTables, packing: &Packing) -> Self {
        let mut key_tiles = Vec::new();
        for (index, segment) in packing.segments().iter().enumerate() {
            key_tiles.extend(segment.rows.clone().step_by(TILE_KEYS).map(|row| {
                let count = TILE_KEYS.min(segment.rows.end - row);
                let position = segment.first_position + row - segment.rows.start;
                ([row as i32, count as i32, position as i32, 0], index)
            }));
        }
        Self {
            readers: ReaderTables::new(&key_tiles, &tables.tiles, packing),
            last_readers: ReaderTables::new(&key_tiles, &tables.last_tiles, packing),
            key_tiles: key_tiles.into_iter().map(|(tile, _)| tile).collect(),
        }
    }
}

impl TrainingLayout {
    pub(super) fn new(
        memory: &Arc<Memory>,
        tables: &AttentionTables,
        packing: &Packing,
        forward: CudaLayout,
        turned_back: Arc<DeviceBuffer<f32>>,
    ) -> std::result::Result<Self, CudaError> {
        let keys = KeyTables::new(tables, packing);
        // The kernel reads key tiles four numbers at a time: they come first.
        let lists: [&[i32]; 5] = [
            keys.key_tiles.as_flattened(),
            &keys.readers.starts,
            &keys.readers.tiles,
            &keys.last_readers.starts,
            &keys.last_readers.tiles,
        ];
        let uploaded = memory.upload(&lists.concat())?;
        let mut next = uploaded.address();
        let [key_tiles, starts, tiles, last_starts, last_tiles] = lists.map(|list| {
            let address = next;
            next += size_of_val(list) as u64;
            address
        });
        Ok(Self {
            forward,
            turned_back,
            key_tiles: Tiles { address: key_tiles, count: keys.key_tiles.len() },
            readers: Readers { starts, tiles },
            last_readers: Readers { starts: last_starts, tiles: last_tiles },
            _tables: uploaded,
        })
    }
}

/// One call of attention, as the way back needs it.
#[derive(Debug)]
pub(super) struct Attended {
    /// Those of each sequence's last row; `None` where every row asks: they are then in `keys`.
    pub(super) last_queries: Option<(CudaMatrix<bf16>, Option<usize>)>,
    pub(super) keys: Arc<CudaProjection>,
    pub(super) key_place: Option<usize>,
    pub(super) layout: Arc<TrainingLayout>,
}

impl Attended {
    /// The forward pass.
    pub(super) fn attend(&self, gpu: &Gpu) -> Result<CudaMatrix<bf16>> {
        let forward = &self.layout.forward;
        let tiles = if self.last_queries.is_some() { forward.last_tiles } else { forward.tiles };
        gpu.ops.attend(self.queries(), &self.keys, forward, tiles)
    }

    fn queries(&self) -> &CudaMatrix<bf16> {
        self.last_queries.as_ref().map_or(&self.keys.values, |(queries, _)| queries)
    }

    /// The gradients of what was projected, turned back.
    pub(super) fn backward(
        &self,
        gpu: &Gpu,
        gradients: &mut TapeGradients,
        out: &CudaMatrix<bf16>,
        d_out: &CudaMatrix<bf16>,
    ) -> Result<()> {
        let TrainingLayout { forward, turned_back, .. } = &*self.layout;
        let (heads, key_value_heads) = (forward.shape.heads, forward.shape.key_value_heads);
        let keys = &self.keys.values;
        let d_keys = gpu.ops.matrix::<f32>(keys.rows, keys.columns)?;
        let turn_back = |gradient: &CudaMatrix<f32>, positions, heads| {
            gpu.ops.rotate(gradient, forward, turned_back, positions, heads)
        };
        let rotated = match &self.last_queries {
            None => {
                self.launch(gpu, (out, d_out), &d_keys, &d_keys)?;
                heads + key_value_heads
            }
            Some((queries, place)) => {
                let d_queries = gpu.ops.matrix::<f32>(queries.rows, queries.columns)?;
                self.launch(gpu, (out, d_out), &d_queries, &d_keys)?;
                if let &Some(place) = place {
                    let d_queries = turn_back(&d_queries, forward.last_positions, heads)?;
                    gradients.put(place, Gradient::Bf16(d_queries));
                }
                key_value_heads
            }
        };
        if let Some(place) = self.key_place {
            let d_keys = turn_back(&d_keys, forward.positions, rotated)?;
            gradients.put(place, Gradient::Bf16(d_keys));
        }
        Ok(())
    }

    /// Writes the gradients of the rotated queries, and of keys and values.
    fn launch(
        &self,
        gpu: &Gpu,
        (out, d_out): (&CudaMatrix<bf16>, &CudaMatrix<bf16>),
        d_queries: &CudaMatrix<f32>,
        d_keys: &CudaMatrix<f32>,
    ) -> Result<()> {
        let (ops, layout, keys) = (&gpu.ops, &self.layout, &self.keys);
        let (forward, shape) = (&layout.forward, &layout.forward.shape);
        let kernels = gpu.kernels.attention(shape.head_dim)?;
        let shared = attention_shared_bytes(shape.head_dim);
        let (tiles, readers) = match self.last_queries {
            Some(_) => (forward.last_tiles, layout.last_readers),
            None => (forward.tiles, layout.readers),
        };
        let queries = self.queries();
        let log_sum = ops.memory.take::<f32>(queries.rows * shape.heads)?;
        let along = ops.memory.take::<f32>(queries.rows * shape.heads)?;
        let values_after = (shape.key_value_heads * shape.head_dim) as u64;
        let before = keys.query_columns as u64;
        let key = keys.values.values.address() + 2 * before;
        let value = key + 2 * values_after;
        let d_key = d_keys.values.address() + 4 * before;
        let d_value = d_key + 4 * values_after;
        let group = (shape.heads / shape.key_value_heads) as i32;
        let window = shape.window.unwrap_or(0) as i32;
        let (scale, soft_cap) = (shape.scale(), shape.soft_cap.unwrap_or(0.0));
        launch!(
            ops,
            &kernels.queries,
            (tiles.count, shape.key_value_heads),
            shared,
            [
                d_queries.values.address(),
                log_sum.address(),
                along.address(),
                d_out.values.address(),
                out.values.address(),
                queries.values.address(),
                key,
                value,
                tiles.address,
                forward.path_starts,
                forward.stretches,
                d_queries.columns as i32,
                out.columns as i32,
                queries.columns as i32,
                keys.values.columns as i32,
                group,
                window,
                scale,
                soft_cap,
            ]
        )?;
        launch!(
            ops,
            &kernels.keys,
            (layout.key_tiles.count, shape.key_value_heads),
            shared,
            [
                d_key,
                d_value,
                log_sum.address(),
                along.address(),
                d_out.values.address(),
                queries.values.address(),
                key,
                value,
                layout.key_tiles.address,
                readers.starts,
                readers.tiles,
                tiles.address,
                d_keys.columns as i32,
                out.columns as i32,
                queries.columns as i32,
                keys.values.columns as i32,
                group,
                window,
                scale,
                soft_cap,
            ]
        )?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layer::AttentionShape;

    /// Every pair of a query and a key that it sees is in one pair of tiles, and keys that nobody reads have a tile.
    #[test]
    fn every_query_reads_its_keys_once() {
        let texts: Vec<Vec<u32>> = [(1, 40, 7), (2, 40, 300), (3, 70, 60), (4, 70, 5), (5, 130, 1)]
            .iter()
            .map(|&(tag, common, own)| {
                let shared = (0..common).map(|i| 10 + i);
                shared.chain((0..own).map(|i| 1000 * tag + i)).collect()
            })
            .collect();
        let packing = Packing::shared(&texts).unwrap();
        let shape =
            AttentionShape { heads: 4, key_value_heads: 2, head_dim: 16, ..Default::default() };
        let tables = AttentionTables::new(&packing, &shape);
        let keys = KeyTables::new(&tables, &packing);
        let covered: usize = keys.key_tiles.iter().map(|tile| tile[1] as usize).sum();
        assert_eq!(covered, packing.rows());
        for (readers, query_tiles, rows_of) in [
            (&keys.readers, &tables.tiles, None),
            (&keys.last_readers, &tables.last_tiles, Some(packing.last_rows())),
        ] {
            // Of each query row, the key rows that it reads.
            let queries = rows_of.as_ref().map_or(packing.rows(), Vec::len);
            let mut read = vec![Vec::new(); queries];
            for (tile, bounds) in keys.key_tiles.iter().zip(readers.starts.windows(2)) {
                let own = &readers.tiles[bounds[0] as usize..bounds[1] as usize];
                assert!(own.is_sorted_by(|a, b| a < b));
                for &index in own {
                    let [row, count, first, _] = query_tiles[index as usize];
                    for query in 0..count {
                        let seen = (0..tile[1]).filter(|key| tile[2] + key <= first + query);
                        read[(row + query) as usize]
                            .extend(seen.map(|key| (tile[0] + key) as usize));
                    }
                }
            }
            for (query, mut read) in read.into_iter().enumerate() {
                let row = rows_of.as_ref().map_or(query, |rows| rows[query]);
                let segment =
                    packing.segments().iter().position(|s| s.rows.contains(&row)).unwrap();
                let mut through = packing.rows_through(segment);
                through.truncate(packing.positions()[row] + 1);
                read.sort_unstable();
                through.sort_unstable();
                assert_eq!(read, through);
            }
        }
    }
}
