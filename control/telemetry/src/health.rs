//! Health over gRPC (`grpc.health.v1`), which says the same as `/readyz`.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::{Observed, Readiness};

/// How late a change of readiness may be told.
const STEP: Duration = Duration::from_millis(500);
/// Stands for all services.
const OVERALL: &str = "";

/// Reports of some services, and of the whole, whether a daemon is ready.
#[derive(Debug)]
pub struct Health<D, const N: usize> {
    reporter: HealthReporter,
    services: [&'static str; N],
    daemon: D,
    told: ServingStatus,
}

impl<D: Observed, const N: usize> Health<D, N> {
    /// With a first report.
    pub async fn new(reporter: HealthReporter, services: [&'static str; N], daemon: D) -> Self {
        let mut health = Self { reporter, services, daemon, told: ServingStatus::Unknown };
        health.look().await;
        health
    }

    /// Goes on reporting for ever.
    #[expect(clippy::infinite_loop, reason = "a task for the life of the process")]
    pub async fn report(mut self) -> Infallible {
        let mut clock = interval(STEP);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let now = match self.daemon.readiness().await {
            Readiness::Ready => ServingStatus::Serving,
            Readiness::NotReady(_) => ServingStatus::NotServing,
        };
        // Who watches hears of changes only.
        if self.told != now {
            self.told = now;
            for service in self.services.iter().chain(&[OVERALL]) {
                self.reporter.set_service_status(service, now).await;
            }
        }
    }
}
