//! What one transaction does, as plain data, and what it makes of a table. Pure.

use std::collections::BTreeSet;

use super::model::{Chain, Element, Rule, Set, Table};

/// Steps that the kernel does all or none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction(pub Vec<Step>);

/// One step of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The table is exactly this afterwards, whatever was there.
    Replace(Table),
    /// The table is not there afterwards, whether it was or not.
    Delete(String),
    /// The set holds exactly these elements afterwards; table and set must be there.
    Refill {
        /// Name of the table.
        table: String,
        /// Name of the set.
        set: String,
        /// What it holds.
        elements: Vec<Element>,
    },
    /// Parts of a table that is there change, in this order; the rest is not touched.
    Edit {
        /// Name of the table.
        table: String,
        /// What changes.
        edits: Vec<Edit>,
    },
}

/// A change to part of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edit {
    /// A set that is not there. What it holds is added by itself.
    AddSet(Set),
    /// A chain that is not there, without rules and not a base chain.
    AddChain(String),
    /// Elements whose keys the set does not hold.
    AddElements {
        /// Name of the set.
        set: String,
        /// What is added.
        elements: Vec<Element>,
    },
    /// The chain, which is there, has exactly these rules afterwards.
    Rewrite {
        /// Name of the chain.
        chain: String,
        /// All of its rules.
        rules: Vec<Rule>,
    },
    /// Elements that the set holds are gone.
    DropElements {
        /// Name of the set.
        set: String,
        /// What goes.
        elements: Vec<Element>,
    },
    /// A chain that nothing names is gone.
    DropChain(String),
    /// A set that no rule names is gone, with all that it holds.
    DropSet(String),
}

impl Transaction {
    /// The table as it should be, in place of what is there under its name.
    pub fn replace(table: Table) -> Self {
        Self(vec![Step::Replace(table)])
    }

    /// The table gone.
    pub fn delete(table: &str) -> Self {
        Self(vec![Step::Delete(table.to_owned())])
    }

    /// Parts of the table changed.
    pub fn edit(table: &str, edits: Vec<Edit>) -> Self {
        Self(vec![Step::Edit { table: table.to_owned(), edits }])
    }

    /// Both, all or none, `self` first.
    #[must_use]
    pub fn then(mut self, other: Transaction) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl Edit {
    /// Makes the change in a sorted table, which stays sorted. What is not there stays away.
    pub(super) fn apply(&self, table: &mut Table) {
        match self {
            Edit::AddSet(set) => {
                let place = table.sets.partition_point(|other| other.name < set.name);
                table.sets.insert(place, set.clone());
            }
            Edit::AddChain(name) => {
                let place = table.chains.partition_point(|other| other.name < *name);
                table.chains.insert(place, Chain { name: name.clone(), base: None, rules: Vec::new() });
            }
            Edit::AddElements { set, elements } => {
                if let Some(set) = table.sets.iter_mut().find(|other| other.name == *set) {
                    set.elements.extend_from_slice(elements);
                    set.elements.sort_by(|a, b| a.key.cmp(&b.key));
                }
            }
            Edit::Rewrite { chain, rules } => {
                if let Some(chain) = table.chains.iter_mut().find(|other| other.name == *chain) {
                    chain.rules.clone_from(rules);
                }
            }
            Edit::DropElements { set, elements } => {
                let gone: BTreeSet<&[u8]> = elements.iter().map(|element| element.key.as_slice()).collect();
                if let Some(set) = table.sets.iter_mut().find(|other| other.name == *set) {
                    set.elements.retain(|element| !gone.contains(element.key.as_slice()));
                }
            }
            Edit::DropChain(name) => table.chains.retain(|chain| chain.name != *name),
            Edit::DropSet(name) => table.sets.retain(|set| set.name != *name),
        }
    }
}
