//! How long to wait before the next try, and for how long to try at all.

use std::future::Future;
use std::time::Duration;

use kube::Error;

/// First wait.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait. After an outage of the API all that changed is to be applied within 5 s: this, a connect timeout and
/// the answers have to fit in.
const LONGEST: Duration = Duration::from_secs(1);
/// How long a call that is no watch may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Waits between tries: doubling, bounded, with jitter so that pods do not come back in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    wait: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { wait: FIRST }
    }
}

impl Backoff {
    /// How long to wait now: 75 to 100 % of 0.1, 0.2, 0.4, 0.8, 1, 1 … seconds.
    pub fn wait(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST);
        wait.mul_f64(rand::random_range(0.75..=1.0))
    }

    /// It worked: begin anew.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A call to the API that came to no good end.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server said no, or could not be asked.
    #[error("the API call failed")]
    Failed(#[source] Error),
    /// Nothing came back in time. Whether the call took effect is not known.
    #[error("the API server did not answer within {0:?}; check that it runs and is not overloaded")]
    Timeout(Duration),
}

impl CallError {
    /// HTTP status of the answer, if there was one.
    pub fn code(&self) -> Option<u16> {
        match self {
            CallError::Failed(Error::Api(status)) => Some(status.code),
            CallError::Failed(_) | CallError::Timeout(_) => None,
        }
    }
}

/// Bounds a call by [`CALL_TIMEOUT`]. kube itself would wait for ever.
pub async fn bounded<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(CallError::Failed(error)),
        Err(_) => Err(CallError::Timeout(CALL_TIMEOUT)),
    }
}
