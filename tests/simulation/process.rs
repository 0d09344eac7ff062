//! One process's life, and its way to the API.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use wirevip::clock::Clock;
use wirevip::election::testing::{Awaited, LeaseClient};
use wirevip::election::{LeaseStore, Record, Sight, StoreError};

use crate::clock::{Machine, Run};
use crate::mutants::Mutant;
use crate::record::{Scribe, What};

/// From start to end; after that, nothing it began goes on.
#[derive(Clone)]
pub struct Life {
    run: Run,
    over: Arc<Awaited<bool>>,
}

impl Life {
    pub fn new(run: Run) -> Self {
        Self { run, over: Arc::default() }
    }

    pub fn end(&self) {
        self.over.set(true);
    }

    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// When it is over.
    pub async fn ended(&self) {
        self.over.until(|over| over).await;
    }

    /// Never, if it is over.
    pub async fn lives(&self) {
        if self.is_over() {
            std::future::pending().await
        }
    }

    /// When the process gets the processor.
    pub async fn goes_on(&self) {
        self.run.goes_on().await;
        self.lives().await;
    }
}

/// [`LeaseStore`] for one process.
pub struct Store {
    pub client: LeaseClient,
    pub life: Life,
    pub pod: usize,
    pub identity: String,
    pub machine: Machine,
    pub scribe: Scribe,
    pub mutant: Mutant,
}

impl Store {
    async fn back(&self, answer: Result<Lease, StoreError>) -> Result<Lease, StoreError> {
        self.life.goes_on().await;
        answer.map(|lease| self.mutant.lease(lease, &self.identity, self.machine.wall()))
    }

    fn sent(&self, record: &Record) {
        self.scribe.write(What::Sent { pod: self.pod, record: record.clone() });
    }
}

impl LeaseStore for Store {
    async fn get(&self) -> Result<Lease, StoreError> {
        self.life.lives().await;
        self.back(self.client.get().await).await
    }

    async fn create(&self, record: Record) -> Result<Lease, StoreError> {
        self.life.lives().await;
        self.sent(&record);
        self.back(self.client.create(record).await).await
    }

    async fn replace(&self, last: Lease, mut record: Record) -> Result<Lease, StoreError> {
        self.life.lives().await;
        if self.mutant == Mutant::CountsNothing {
            record.transitions = Record::from(&last).transitions;
        }
        self.sent(&record);
        let mut answer = self.client.replace(last, record.clone()).await;
        if self.mutant == Mutant::WritesUnguarded
            && let Err(StoreError::Conflict) = &answer
            && let Ok(newest) = self.client.get().await
        {
            answer = self.client.replace(newest, record).await;
        }
        self.back(answer).await
    }

    fn watch(&self) -> BoxStream<'static, Sight> {
        let (life, identity, machine, mutant) =
            (self.life.clone(), self.identity.clone(), self.machine.clone(), self.mutant);
        let shown = move |sight| {
            let (life, identity, machine) = (life.clone(), identity.clone(), machine.clone());
            async move {
                life.goes_on().await;
                match sight {
                    Sight::Lease(lease) => Sight::Lease(Box::new(mutant.lease(*lease, &identity, machine.wall()))),
                    other => other,
                }
            }
        };
        self.client.watch().then(shown).boxed()
    }
}
