//! Runs with a known change, and what the alerts make of them.
//!
//! SFT latents are three clusters of a multivariate t distribution of 8 degrees of freedom, whose
//! directions differ in variance as 1, 1/2, 1/3, .. and are mixed at random. Each seed has a population
//! of its own, a baseline of its own, and windows of its own.

use inform::model::standard_normal;
use inform::monitor::alerts::{AlertKind, AlertParameters, Alerts, Look};
use inform::monitor::statistics::csi::{CsiParameters, csi};
use inform::monitor::statistics::dispersion::total_variance;
use inform::monitor::statistics::null::{NullValues, Observed};
use inform::monitor::{BaselineAnswers, BaselineOrigin, BaselineSet};
use ndarray::{Array1, Array2, Axis};

/// Windows before the change.
pub(crate) const BEFORE: usize = 5;
const DEGREES: usize = 8;

/// What happens to a run after its first windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Shift,
    Spread,
    Collapse,
    Mixture,
    Cluster,
    Drift,
    Length,
}

impl Change {
    pub(crate) const ALL: [Self; 7] = [
        Self::Shift,
        Self::Spread,
        Self::Collapse,
        Self::Mixture,
        Self::Cluster,
        Self::Drift,
        Self::Length,
    ];

    #[allow(dead_code, reason = "the tests print no table")]
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Shift => "shift of the mean by 0.15 of the radius",
            Self::Spread => "spread by 1.3",
            Self::Collapse => "collapse to one point",
            Self::Mixture => "10 % of a distant kind",
            Self::Cluster => "distant cluster growing from 1 to 50 % in 25 windows",
            Self::Drift => "drift by 0.01 of the radius a window",
            Self::Length => "length growing by 5 % a window",
        }
    }

    /// Windows within which it should be seen.
    pub(crate) fn horizon(self) -> usize {
        match self {
            Self::Shift | Self::Spread | Self::Collapse => 2,
            Self::Mixture => 4,
            Self::Cluster => 25,
            Self::Drift | Self::Length => 40,
        }
    }
}

/// A population of SFT answers.
pub(crate) struct Population {
    seed: u64,
    streams: u64,
    mixing: Array2<f32>,
    centres: Array2<f32>,
    /// A unit vector.
    away: Array1<f32>,
    /// Root of the mean squared distance from the mean.
    radius: f32,
}

impl Population {
    pub(crate) fn new(seed: u64, dimension: usize) -> Self {
        let mut this = Self {
            seed,
            streams: 0,
            mixing: Array2::zeros((dimension, dimension)),
            centres: Array2::zeros((3, dimension)),
            away: Array1::zeros(dimension),
            radius: 1.0,
        };
        this.mixing = this.normal(dimension, dimension);
        for (i, mut row) in this.mixing.outer_iter_mut().enumerate() {
            row /= ((i + 1) as f32).sqrt();
        }
        let spread = this.mixing.iter().map(|value| value * value).sum::<f32>();
        this.centres = this.normal(3, dimension) * (0.5 * (spread / dimension as f32).sqrt());
        let away = this.normal(1, dimension).remove_axis(Axis(0));
        this.away = &away / away.dot(&away).sqrt();
        let sample = this.draw(2000);
        let centred = &sample - &sample.mean_axis(Axis(0)).expect("not empty");
        this.radius = (centred.mapv(|value| value * value).sum() / 2000.0).sqrt();
        this
    }

    fn normal(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        self.streams += 1;
        let values = standard_normal(self.seed, self.streams, rows * columns);
        Array2::from_shape_vec((rows, columns), values).expect("as many as asked for")
    }

    /// Fresh answers `[n, d]`.
    pub(crate) fn draw(&mut self, n: usize) -> Array2<f32> {
        let mut latents = self.normal(n, self.mixing.nrows()).dot(&self.mixing);
        let others = self.normal(n, DEGREES + 1);
        for (mut latent, other) in latents.outer_iter_mut().zip(others.outer_iter()) {
            let squares = other.iter().take(DEGREES).map(|value| value * value).sum::<f32>();
            latent /= (squares / DEGREES as f32).sqrt();
            // Half, three tenths, two tenths.
            let cluster = match other[DEGREES] {
                z if z < 0.0 => 0,
                z if z < 0.8416 => 1,
                _ => 2,
            };
            latent += &self.centres.row(cluster);
        }
        latents
    }

    /// Answers of a window, `after` windows after the change began.
    fn changed(&mut self, n: usize, change: Change, after: usize) -> Array2<f32> {
        let mut latents = self.draw(n);
        let mut shift = |by: f32| latents.scaled_add_all(&self.away, by * self.radius);
        match change {
            Change::Length => {}
            Change::Shift => shift(0.15),
            Change::Drift => shift(0.01 * (after + 1) as f32),
            Change::Spread => latents *= 1.3,
            Change::Collapse => {
                let point = latents.row(0).to_owned();
                let noise = self.normal(n, point.len()) * (0.001 * self.radius);
                latents = noise + &point;
            }
            Change::Mixture => self.replace(&mut latents, 0.1),
            Change::Cluster => self.replace(&mut latents, 0.01 + 0.49 * after as f32 / 24.0),
        }
        latents
    }

    /// Moves a share of the answers into a cluster of a third of the spread, three radii away.
    fn replace(&self, latents: &mut Array2<f32>, share: f32) {
        let count = (share * latents.nrows() as f32).round() as usize;
        for mut latent in latents.outer_iter_mut().take(count) {
            latent /= 3.0;
            latent.scaled_add(3.0 * self.radius, &self.away);
        }
    }

    /// Mean length of `n` answers: log-normal, 200 tokens at the median.
    fn length(&mut self, n: usize) -> f64 {
        let lengths = self.normal(1, n).mapv(|z| 200.0 * f64::from(0.6 * z).exp());
        lengths.sum() / n as f64
    }
}

trait AddToAll {
    fn scaled_add_all(&mut self, row: &Array1<f32>, by: f32);
}

impl AddToAll for Array2<f32> {
    fn scaled_add_all(&mut self, row: &Array1<f32>, by: f32) {
        self.outer_iter_mut().for_each(|mut latent| latent.scaled_add(by, row));
    }
}

/// A baseline and what windows are compared with.
pub(crate) struct Bench {
    pub(crate) population: Population,
    baseline: Array2<f32>,
    norms: Vec<f32>,
    set: BaselineSet,
    window: usize,
}

/// Distances in single precision: a simulation takes some 20,000 windows.
fn mean_distance(x: &Array2<f32>, x_norms: &[f32], y: &Array2<f32>, y_norms: &[f32]) -> f64 {
    let mut total = 0.0;
    for (rows, norms) in x.axis_chunks_iter(Axis(0), 64).zip(x_norms.chunks(64)) {
        let gram = rows.dot(&y.t());
        for (products, norm) in gram.outer_iter().zip(norms) {
            let products = products.as_slice().expect("a product's row");
            let distance =
                |(product, other): (&f32, &f32)| (norm + other - 2.0 * product).max(0.0).sqrt();
            total += f64::from(products.iter().zip(y_norms).map(distance).sum::<f32>());
        }
    }
    total / (x.nrows() * y.nrows()) as f64
}

fn norms(x: &Array2<f32>) -> Vec<f32> {
    x.outer_iter().map(|row| row.dot(&row)).collect()
}

impl Bench {
    pub(crate) fn new(seed: u64, dimension: usize, baseline: usize, window: usize) -> Self {
        let mut population = Population::new(seed, dimension);
        let baseline = population.draw(baseline);
        let answers = BaselineAnswers {
            latents: baseline.iter().map(|&value| f64::from(value)).collect(),
            dimension,
            ..BaselineAnswers::default()
        };
        let set = BaselineSet::new(answers, BaselineOrigin::Checkpoint, 0).expect("answers");
        Self { norms: norms(&baseline), population, baseline, set, window }
    }

    /// The statistics of a window; `after` counts from the change.
    pub(crate) fn observe(&mut self, change: Option<(Change, usize)>) -> (Observed, f64) {
        let n = self.window;
        let latents = match change {
            Some((change, after)) => self.population.changed(n, change, after),
            None => self.population.draw(n),
        };
        let growth = match change {
            Some((Change::Length, after)) => 1.05_f64.powi(after as i32 + 1),
            _ => 1.0,
        };
        let length = growth * self.population.length(n);
        let own = norms(&latents);
        let between = mean_distance(&latents, &own, &self.baseline, &self.norms);
        let within = mean_distance(&latents, &own, &latents, &own);
        let reference = self.set.reference(&CsiParameters::default());
        let threshold = reference.outlier_distance(0.01).expect("held-out distances");
        let wide = latents.mapv(f64::from);
        let distances = reference.mahalanobis().expect("a covariance").distances(wide.view());
        let flagged = distances.iter().filter(|distance| **distance > threshold).count();
        let separation = csi(wide.view(), self.set.latents.view(), &CsiParameters::default());
        let observed = Observed {
            samples: n,
            effective_samples: n as f64,
            energy: Some(2.0 * between - within - reference.mean_distance()),
            csi_per_sample: separation.ok().map(|csi| csi.per_sample),
            mop: Some(flagged as f64 / n as f64),
            mop_threshold: Some(threshold),
            dispersion_ratio: total_variance(wide.view())
                .zip(reference.total_variance())
                .map(|(window, baseline)| window / baseline),
            distinct_ratio: Some(1.0),
        };
        (observed, length)
    }

    pub(crate) fn judge(&self, observed: &Observed) -> NullValues {
        let null = self.set.null(&CsiParameters::default());
        null.judge(self.set.latents.view(), observed)
    }

    /// The kinds that one run's windows raise, in order: pairs of a window's number and a kind.
    /// Ends with the first alert after the change.
    pub(crate) fn run(
        &mut self,
        parameters: &AlertParameters,
        change: Option<Change>,
        windows: usize,
    ) -> Vec<(usize, AlertKind)> {
        let mut alerts = Alerts::new(parameters.clone(), 32).expect("parameters in range");
        let mut raised = Vec::new();
        for number in 0..windows {
            let changed =
                change.filter(|_| number >= BEFORE).map(|change| (change, number - BEFORE));
            let (observed, length) = self.observe(changed);
            let null = self.judge(&observed);
            let changes = alerts.push(&Look {
                number: number as u64,
                step: None,
                at: number as f64,
                samples: self.window,
                baseline: Some(0),
                null: Some(&null),
                length: Some(length),
                outlying: &[],
            });
            raised.extend(changes.raised.into_iter().map(|kind| (number, kind)));
            if changed.is_some() && raised.iter().any(|(number, _)| *number >= BEFORE) {
                break;
            }
        }
        raised
    }
}
