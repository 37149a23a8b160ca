//! The Gram index against plain scans, where rounding could tell them apart.
#![allow(clippy::unwrap_used)]

use inform::monitor::statistics::neighbours::{GramNeighbours, nearest_distances};
use linfa_nn::{BuildError, NearestNeighbour, NearestNeighbourIndex, NnError, distance::L2Dist};
use ndarray::{Array2, ArrayBase, ArrayView1, Axis, Data, Ix2, ShapeBuilder, array, s};

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

fn index<'a>(
    batch: &'a ArrayBase<impl Data<Elem = f64>, Ix2>,
) -> Box<dyn 'a + Send + Sync + NearestNeighbourIndex<f64>> {
    GramNeighbours { radius: RADIUS }.from_batch(batch, L2Dist).unwrap()
}

fn rows<T>(found: Result<Vec<(T, usize)>, NnError>) -> Vec<usize> {
    found.unwrap().into_iter().map(|(_, row)| row).collect()
}

#[test]
fn ranges_are_those_of_the_plain_sum_near_and_far_from_the_origin() {
    for dimension in [1, 3, 20] {
        for offset in [0.0, 1e4, 1e9 / 3.0] {
            let points = hard_points(dimension, offset);
            let index = index(&points);
            for point in points.outer_iter() {
                let found = rows(index.within_range(point, RADIUS));
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
    let index = index(&points);
    for point in points.outer_iter() {
        let found = rows(index.within_range(point, RADIUS));
        assert_eq!(found, plain_neighbours(&points, point));
    }
}

#[test]
fn overflowing_norms_leave_near_pairs_near() {
    let points = array![[1e200, 0.0], [1e200, 0.25], [-1e200, 0.0], [0.0, 0.0]];
    let index = index(&points);
    assert_eq!(rows(index.within_range(points.row(0), RADIUS)), [0, 1]);
    assert_eq!(rows(index.within_range(points.row(3), RADIUS)), [3]);
}

#[test]
fn the_layout_of_the_batch_does_not_matter() {
    let points = hard_points(4, 0.0);
    let mut columns = Array2::zeros(points.raw_dim().f());
    columns.assign(&points);
    let reversed = points.slice(s![..;-1, ..]);
    let broadcast = points.row(0);
    let broadcast = broadcast.broadcast((5, 4)).unwrap();
    let (by_columns, backwards) = (index(&columns), index(&reversed));
    let last = points.nrows() - 1;
    for (row, point) in points.outer_iter().enumerate() {
        let expected = plain_neighbours(&points, point);
        assert_eq!(rows(by_columns.within_range(columns.row(row), RADIUS)), expected);
        let mut found = rows(backwards.within_range(reversed.row(last - row), RADIUS));
        found.iter_mut().for_each(|found| *found = last - *found);
        found.reverse();
        assert_eq!(found, expected);
    }
    let all = index(&broadcast);
    assert_eq!(rows(all.within_range(broadcast.row(1), RADIUS)), [0, 1, 2, 3, 4]);
}

#[test]
fn queries_other_than_rows_at_the_radius_are_answered_too() {
    let points = hard_points(3, 0.0);
    let index = index(&points);
    let stranger = array![0.1, 0.1, 0.1];
    let found = rows(index.within_range(stranger.view(), RADIUS));
    assert_eq!(found, plain_neighbours(&points, stranger.view()));
    let everything = rows(index.within_range(points.row(0), 1e3));
    assert_eq!(everything, Vec::from_iter(0..points.nrows()));
    // Views into the batch that are no rows of it.
    let straddling = ArrayView1::from(&points.as_slice().unwrap()[1..4]);
    let column = points.slice(s![..3, 0]);
    for view in [straddling, column] {
        let found = rows(index.within_range(view, RADIUS));
        assert_eq!(found, plain_neighbours(&points, view));
    }
}

#[test]
fn single_precision_is_decided_in_double() {
    let points = array![[0.0_f32], [0.5], [1.0 + f32::EPSILON], [1.0]];
    let index = GramNeighbours { radius: RADIUS }.from_batch(&points, L2Dist).unwrap();
    assert_eq!(rows(index.within_range(points.row(1), 0.5)), [0, 1, 3]);
}

#[test]
fn the_nearest_come_in_order_of_distance_then_of_rows() {
    let points = array![[3.0], [1.0], [-1.0], [0.5], [1.0]];
    let index = index(&points);
    let origin = array![0.0];
    assert_eq!(rows(index.k_nearest(origin.view(), 3)), [3, 1, 2]);
    assert_eq!(rows(index.k_nearest(origin.view(), 9)), [3, 1, 2, 4, 0]);
}

#[test]
fn wrong_dimensions_are_errors() {
    let points = hard_points(3, 0.0);
    let index = index(&points);
    let short = points.slice(s![0, ..2]);
    assert!(matches!(index.within_range(short, RADIUS), Err(NnError::WrongDimension)));
    assert!(matches!(index.k_nearest(short, 1), Err(NnError::WrongDimension)));
    let pairs = points.slice(s![.., ..2]);
    assert!(matches!(nearest_distances(pairs, points.view()), Err(NnError::WrongDimension)));
    let flat = Array2::<f64>::zeros((3, 0));
    let built = GramNeighbours { radius: RADIUS }.from_batch(&flat, L2Dist);
    assert!(matches!(built.err(), Some(BuildError::ZeroDimension)));
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
        assert_eq!(nearest_distances(queries.view(), set.view()).unwrap(), expected);
    }
    let nothing = Array2::zeros((0, 2));
    let one = array![[1.0, 2.0]];
    assert_eq!(nearest_distances(one.view(), nothing.view()).unwrap(), [f64::INFINITY]);
}
