//! A machine's clocks: true time seen through an oscillator that is too fast or too slow, and a wall clock that anybody
//! may set. Timers of the machine run by its oscillator too.
//!
//! How far oscillators may differ follows from `Params`: a tenure of `lease − margin` by the slowest clock must be over
//! when `lease` is over by the fastest, so fastest ÷ slowest ≤ lease ÷ (lease − margin). The margin is 5 % of the lease
//! at least; that makes 1.0526, less what the kernel's ticks add ([`JIFFY`] of 4.75 s): 1.0504. [`SPREAD`] stays below.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use rand::rngs::StdRng;
use wirevip::clock::{Clock, Moment, TokioClock};
use wirevip::election::testing::Awaited;

/// The fastest clock of a world runs at most so many times as fast as the slowest.
pub const SPREAD: f64 = 1.05;
/// The kernel counts timeouts in ticks, and rounds up: 10 ms at CONFIG_HZ=100.
pub const JIFFY: Duration = Duration::from_millis(10);
/// NTP may slew the process's clock (adjtimex, 500 ppm); the ticks that the fence is counted in are not slewed.
const SLEW: f64 = 0.0005;

/// How a machine's clocks go, for the record.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    /// Of CLOCK_BOOTTIME, by which the process decides.
    pub process: f64,
    /// Of the ticks by which the kernel lets elements of sets go.
    pub kernel: f64,
}

impl Rates {
    /// Rates for this many machines: alike, as good as quartz is, or as bad as the lease arithmetic allows.
    pub fn draw(rng: &mut StdRng, machines: usize) -> Vec<Self> {
        let spread = match rng.random_range(0..3) {
            0 => 0.0,
            1 => 0.001,
            _ => SPREAD - 1.0,
        };
        let draw = |rng: &mut StdRng| {
            // Both ends are likelier than chance has them: that is where it breaks.
            let place = (rng.random_range(-0.5..1.5_f64)).clamp(0.0, 1.0);
            let process = 1.0 + spread * place;
            let slew = rng.random_range(-SLEW..=SLEW).clamp(0.0 - spread * place, spread * (1.0 - place));
            Self { process, kernel: process + slew }
        };
        (0..machines).map(|_| draw(rng)).collect()
    }
}

/// One machine's time. Clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    world: TokioClock,
    rates: Rates,
    /// Moments of different machines are not comparable; so that who does finds out.
    booted: Duration,
    wall_off: Arc<Mutex<SignedDuration>>,
    run: Run,
}

impl Machine {
    pub fn new(world: TokioClock, rates: Rates, booted: Duration, wall_off: SignedDuration) -> Self {
        Self { world, rates, booted, wall_off: Arc::new(Mutex::new(wall_off)), run: Run::default() }
    }

    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Somebody sets the wall clock.
    pub fn step_wall(&self, by: SignedDuration) {
        *self.wall_off.lock().unwrap() += by;
    }

    /// What the kernel counts by.
    pub fn kernel(&self) -> KernelClock {
        KernelClock(self.clone())
    }

    /// True time of a moment of [`Machine::kernel`].
    pub fn true_time(&self, kernel: Moment) -> Duration {
        kernel.since_boot().saturating_sub(self.booted).div_f64(self.rates.kernel)
    }

    fn read(&self, rate: f64) -> Moment {
        Moment::new(self.booted + self.world.now().since_boot().mul_f64(rate))
    }
}

impl Clock for Machine {
    fn now(&self) -> Moment {
        self.read(self.rates.process)
    }

    fn wall(&self) -> Timestamp {
        self.world.wall() + *self.wall_off.lock().unwrap()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        let timer = self.world.sleep(span.div_f64(self.rates.process));
        let run = self.run.clone();
        async move {
            timer.await;
            run.goes_on().await;
        }
        .boxed()
    }
}

/// See [`Machine::kernel`].
pub struct KernelClock(Machine);

impl Clock for KernelClock {
    fn now(&self) -> Moment {
        self.0.read(self.0.rates.kernel)
    }

    fn wall(&self) -> Timestamp {
        self.0.wall()
    }
}

/// Does the machine's process get the processor? A frozen one sees no timer end, no answer and no event; what it asked
/// the kernel or the network for goes on without it.
#[derive(Clone, Default)]
pub struct Run(Arc<Awaited<bool>>);

impl Run {
    pub fn freeze(&self, frozen: bool) {
        self.0.set(frozen);
    }

    pub fn frozen(&self) -> bool {
        self.0.get()
    }

    /// Until it runs.
    pub async fn goes_on(&self) {
        self.0.until(|frozen| !frozen).await;
    }
}
