//! Neighbours and nearest points against plain scans, where rounding could tell them apart.

use inform::monitor::statistics::nearest::{k_nearest_distances, nearest_distances};
use inform::monitor::statistics::neighbours::NeighbourGraph;
use ndarray::{Array2, ArrayView1, Axis, ShapeBuilder, array, s};

const RADIUS: f64 = 0.5;

/// A deterministic value in -1..1 on a grid of 2^-20, so that ties and near ties occur.
fn grid(seed: u64) -> f64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 43) as f64 / (1 << 20) as f64 - 1.0
}

/// More rows than a Gram block: a cloud, repeats of its rows, and a chain with steps of exactly the
/// radius, all moved by `offset`.
fn hard_points(dimension: usize, offset: f64) -> Array2<f64> {
    let cloud =
        Array2::from_shape_fn((400, dimension), |(i, j)| grid((i * dimension + j) as u64) * 0.3);
    let repeats = cloud.select(Axis(0), &[0, 0, 7, 399]);
    let mut chain = Array2::zeros((40, dimension));
    for (step, mut row) in chain.outer_iter_mut().enumerate() {
        row[step % dimension] = 10.0;
        row[0] += RADIUS * step as f64;
    }
    ndarray::concatenate![Axis(0), cloud, repeats, chain] + offset
}

fn plain_square(x: ArrayView1<'_, f64>, y: ArrayView1<'_, f64>) -> f64 {
    let squares = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y));
    squares.fold(0.0, |sum, square| sum + square)
}

fn plain_neighbours(points: &Array2<f64>, point: ArrayView1<'_, f64>) -> Vec<usize> {
    let near = |row: &usize| plain_square(points.row(*row), point) <= RADIUS * RADIUS;
    (0..points.nrows()).filter(near).collect()
}

fn neighbours(graph: &NeighbourGraph, row: usize) -> Vec<usize> {
    graph.neighbours(row).collect()
}

#[test]
fn ranges_are_those_of_the_plain_sum_near_and_far_from_the_origin() {
    for dimension in [1, 3, 20] {
        for offset in [0.0, 1e4, 1e9 / 3.0] {
            let points = hard_points(dimension, offset);
            let graph = NeighbourGraph::new(points.view(), RADIUS);
            for (row, point) in points.outer_iter().enumerate() {
                let found = neighbours(&graph, row);
                assert_eq!(found, plain_neighbours(&points, point), "{dimension}, {offset}");
            }
        }
    }
}

#[test]
fn ranges_hold_where_no_screen_can_tell() {
    let mut points = hard_points(3, 0.0);
    // Two groups so far apart that the width of every interval exceeds the radius.
    points.slice_mut(s![..200, 1]).map_inplace(|value| *value += 2f64.powi(32));
    let graph = NeighbourGraph::new(points.view(), RADIUS);
    for (row, point) in points.outer_iter().enumerate() {
        assert_eq!(neighbours(&graph, row), plain_neighbours(&points, point));
    }
}

#[test]
fn overflowing_norms_leave_near_pairs_near() {
    let points = array![[1e200, 0.0], [1e200, 0.25], [-1e200, 0.0], [0.0, 0.0]];
    let graph = NeighbourGraph::new(points.view(), RADIUS);
    assert_eq!(neighbours(&graph, 0), [0, 1]);
    assert_eq!(neighbours(&graph, 3), [3]);
}

#[test]
fn the_layout_of_the_batch_does_not_matter() {
    let points = hard_points(4, 0.0);
    let mut columns = Array2::zeros(points.raw_dim().f());
    columns.assign(&points);
    let reversed = points.slice(s![..;-1, ..]);
    let broadcast = points.row(0);
    let broadcast = broadcast.broadcast((5, 4)).unwrap();
    let graph = |points| NeighbourGraph::new(points, RADIUS);
    let (by_columns, backwards) = (graph(columns.view()), graph(reversed));
    let last = points.nrows() - 1;
    for (row, point) in points.outer_iter().enumerate() {
        let expected = plain_neighbours(&points, point);
        assert_eq!(neighbours(&by_columns, row), expected);
        let mut found = neighbours(&backwards, last - row);
        found.iter_mut().for_each(|found| *found = last - *found);
        found.reverse();
        assert_eq!(found, expected);
    }
    assert_eq!(neighbours(&graph(broadcast), 1), [0, 1, 2, 3, 4]);
}

#[test]
fn sizes_around_those_of_words_and_blocks() {
    for count in [0, 1, 2, 63, 64, 65, 127, 128, 255, 256, 257, 320, 513] {
        let points = hard_points(2, 0.0).slice(s![..count.min(444), ..]).to_owned();
        let points =
            ndarray::concatenate![Axis(0), points, Array2::zeros((count.max(444) - 444, 2))];
        let graph = NeighbourGraph::new(points.view(), RADIUS);
        assert_eq!((graph.len(), graph.is_empty()), (count, count == 0));
        for (row, point) in points.outer_iter().enumerate() {
            assert_eq!(neighbours(&graph, row), plain_neighbours(&points, point), "{count}");
        }
    }
}

#[test]
fn the_k_nearest_come_in_order_of_distance() {
    let points = array![[3.0], [1.0], [-1.0], [0.5], [1.0]];
    let origin = array![[0.0]];
    let found = |k| k_nearest_distances(origin.view(), points.view(), k);
    assert_eq!(found(4), [0.5, 1.0, 1.0, 1.0]);
    assert_eq!(found(0), [0.0; 0]);
    assert_eq!(found(6), [0.5, 1.0, 1.0, 1.0, 3.0, f64::INFINITY]);
    let flat = Array2::zeros((1, 2));
    assert_eq!(k_nearest_distances(flat.view(), points.view(), 2), [f64::INFINITY; 2]);
    let points = hard_points(20, 1e4);
    let queries = points.slice(s![..;7, ..]).mapv(|value| value + 2f64.powi(-12));
    let found = k_nearest_distances(queries.view(), points.view(), 7);
    for (query, found) in queries.outer_iter().zip(found.chunks(7)) {
        let mut squares: Vec<_> =
            points.outer_iter().map(|point| plain_square(query, point)).collect();
        squares.sort_unstable_by(f64::total_cmp);
        let expected: Vec<_> = squares.iter().take(7).map(|square| square.sqrt()).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn nearest_distances_are_the_smallest_plain_ones() {
    for offset in [0.0, 1e4, 1e9 / 3.0] {
        let set = hard_points(20, offset);
        let queries = set.slice(s![..;3, ..]).mapv(|value| value + 2f64.powi(-12));
        let expected: Vec<_> = queries
            .outer_iter()
            .map(|query| {
                let squares = set.outer_iter().map(|point| plain_square(query, point));
                squares.fold(f64::INFINITY, f64::min).sqrt()
            })
            .collect();
        assert_eq!(nearest_distances(queries.view(), set.view()), expected);
    }
    let nothing = Array2::zeros((0, 2));
    let one = array![[1.0, 2.0]];
    assert_eq!(nearest_distances(one.view(), nothing.view()), [f64::INFINITY]);
}
