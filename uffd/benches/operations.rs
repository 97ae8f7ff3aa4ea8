//! What each call of a userfaultfd costs, on the running kernel and on the model.
//!
//! The two are measured in turns: every sample of one is followed by one of the other, so that
//! whatever disturbs the machine disturbs both. Criterion gets the samples of the side whose
//! figure it asks for; a table at the end has all of both.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use godwit_uffd::memory::MemoryKind;
use godwit_uffd_testing::costs::{Ground, Load, Record, Table, Work, batches};
use godwit_uffd_testing::kernel::KernelGround;
use godwit_uffd_testing::model::ModelGround;

/// Whose figure criterion asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Kernel,
    Model,
}

/// The same work on both sides.
struct Pair<'a> {
    kernel: Load<'a, KernelGround>,
    model: Load<'a, ModelGround>,
    record: &'a mut Record,
}

impl Pair<'_> {
    /// Works on both, in turns, and counts the time of one.
    fn rounds(&mut self, side: Side, count: u64) -> Duration {
        (0..count).map(|_| self.round(side)).sum()
    }

    fn round(&mut self, side: Side) -> Duration {
        let (kernel, model) = (self.kernel.round(), self.model.round());
        let pages = self.kernel.pages();
        self.record.kernel.push(nanoseconds(kernel) / pages_as_float(pages));
        self.record.model.push(nanoseconds(model) / pages_as_float(pages));
        if side == Side::Kernel { kernel } else { model }
    }
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

fn pages_as_float(pages: u64) -> f64 {
    f64::from(u32::try_from(pages).expect("a small place"))
}

fn measure(criterion: &mut Criterion, table: &mut Table, kind: MemoryKind) {
    let kernel = match KernelGround::new(kind) {
        Ok(kernel) => kernel,
        Err(reason) => return println!("skipped: {}", reason.0),
    };
    let model = ModelGround::new(kind);
    for work in Work::ALL.into_iter().filter(|work| work.works_on(kind)) {
        let mut group = criterion.benchmark_group(format!("{}/{}", work.name(), kind.name()));
        for &batch in batches(kind) {
            group
                .throughput(Throughput::Elements(kernel.layout().bytes() / kernel.layout().page()));
            for (side, name) in [(Side::Kernel, "kernel"), (Side::Model, "model")] {
                group.bench_function(format!("{batch} pages/{name}"), |bencher| {
                    let mut pair = Pair {
                        kernel: Load::new(&kernel, work, batch),
                        model: Load::new(&model, work, batch),
                        record: table.record(work, kind, batch),
                    };
                    bencher.iter_custom(|count| pair.rounds(side, count));
                });
            }
        }
        group.finish();
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(WARM_UP)
        .measurement_time(MEASUREMENT)
        .configure_from_args();
    let mut table = Table::default();
    let started = Instant::now();
    for kind in MemoryKind::ALL {
        measure(&mut criterion, &mut table, kind);
    }
    criterion.final_summary();
    println!("Nanoseconds per page, medians over the rounds of {:.0?}:\n", started.elapsed());
    println!("{table}");
}

/// Samples that criterion takes of each figure.
const SAMPLES: usize = 20;
/// Time that each figure runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(50);
/// Time that one side of a pair is measured for.
const MEASUREMENT: Duration = Duration::from_millis(200);
