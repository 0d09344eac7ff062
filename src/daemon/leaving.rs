//! Actors on their way out. Each that comes after them waits for all of them, since it may want a port or a name of theirs.

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};

/// See the module's text.
#[derive(Default)]
pub(super) struct Leaving(Vec<Shared<BoxFuture<'static, ()>>>);

impl Leaving {
    /// One more is on its way; it goes on by itself.
    pub(super) fn add(&mut self, leaves: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(leaves);
        // Who is told to leave says itself what went wrong.
        self.0.push(task.map(drop).boxed().shared());
    }

    /// When all who are on their way by now are gone.
    pub(super) fn gone(&mut self) -> impl Future<Output = ()> + Send + use<> {
        self.0.retain(|one| one.clone().now_or_never().is_none());
        join_all(self.0.clone()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn everyone_who_comes_waits_for_all_who_leave_not_the_first_alone() {
        let mut leaving = Leaving::default();
        let (one_goes, one) = oneshot::channel::<()>();
        let (other_goes, other) = oneshot::channel::<()>();
        leaving.add(one.map(drop));
        leaving.add(other.map(drop));
        let (mut first, mut second) = (Box::pin(leaving.gone()), Box::pin(leaving.gone()));
        drop(one_goes);
        tokio::task::yield_now().await;
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending(), "one of two is left");
        drop(other_goes);
        first.await;
        second.await;
        leaving.gone().await;
        assert!(leaving.0.is_empty(), "who is gone is remembered");
    }

    #[tokio::test]
    async fn who_leaves_goes_on_though_nobody_waits_and_a_panic_holds_nobody_up() {
        let mut leaving = Leaving::default();
        let (done, is_done) = oneshot::channel();
        leaving.add(async move { done.send(()).unwrap() });
        is_done.await.unwrap();
        leaving.add(async { panic!("it did not end well") });
        leaving.gone().await;
    }
}
