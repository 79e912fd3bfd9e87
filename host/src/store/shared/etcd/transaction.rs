//! A transaction as etcd takes it: what it compares, what it does, and how large it may be.

use super::*;

impl Inner {
    pub(super) fn compares(&self, transaction: &Transaction) -> Vec<Compare> {
        let compare = |condition: &Condition| match condition {
            Condition::At {
                bucket,
                key,
                revision,
            } => {
                let key = self.keys.entry(bucket, key);
                let at = revision.map_or(0, |revision| signed(revision.0));
                Compare::mod_revision(key, CompareOp::Equal, at)
            }
            // Until its lease is revoked it is there; once it is gone, the log will tell.
            Condition::Over {
                bucket,
                key,
                revision,
            } => {
                let key = self.keys.entry(bucket, key);
                Compare::mod_revision(key, CompareOp::Equal, signed(revision.0))
            }
            Condition::Unchanged { bucket, since } => {
                let next = signed(since.0).saturating_add(1);
                Compare::mod_revision(self.keys.bucket(bucket), CompareOp::Less, next).with_prefix()
            }
            Condition::Sized { bucket, since } => {
                let next = signed(since.0).saturating_add(1);
                Compare::mod_revision(self.keys.bucket(bucket), CompareOp::Less, next)
            }
        };
        let is_full = self.has_no_room_for_sizes(transaction);
        let conditions = transaction.conditions.iter();
        conditions
            .filter(|it| !(is_full && matches!(it, Condition::Sized { .. })))
            .map(compare)
            .collect()
    }

    /// Whether what counts for the limits of buckets would make it too large.
    pub(super) fn has_no_room_for_sizes(&self, transaction: &Transaction) -> bool {
        let operations = transaction.writes.len() + marked_in(transaction, true).len();
        let most = operations.max(transaction.conditions.len());
        most > self.settings.transaction_writes_max
    }

    pub(super) fn operations(
        &self,
        transaction: &Transaction,
        leases: &[Option<i64>],
    ) -> Vec<TxnOp> {
        let (marked, author) = self.marks(transaction);
        let mut operations: Vec<TxnOp> = marked
            .into_iter()
            .map(|bucket| TxnOp::put(self.keys.bucket(bucket), &*author, None))
            .collect();
        let writes = transaction.writes.iter();
        operations.extend(writes.zip(leases).map(|(write, lease)| {
            let key = self.keys.entry(&write.bucket, &write.key);
            match &write.value {
                Some(value) => {
                    let options = match value.life {
                        Life::AsBefore => Some(PutOptions::new().with_ignore_lease()),
                        Life::For(_) | Life::Lasting => {
                            lease.map(|lease| PutOptions::new().with_lease(lease))
                        }
                    };
                    TxnOp::put(key, &*value.bytes, options)
                }
                None => TxnOp::delete(key, None),
            }
        }));
        operations
    }

    /// The buckets whose mark a transaction writes, and what to: those of which it is noted that it was there, or all if it is
    /// to be told who makes it and there is room for that.
    pub(super) fn marks<'t>(&self, transaction: &'t Transaction) -> (BTreeSet<&'t str>, String) {
        let marked = marked_in(transaction, !self.has_no_room_for_sizes(transaction));
        let written = transaction.writes.iter().map(|write| &*write.bucket);
        let all: BTreeSet<_> = written.chain(marked.iter().copied()).collect();
        let operations = transaction.writes.len() + all.len();
        match &transaction.author {
            Some(author) if operations <= self.settings.transaction_writes_max => {
                (all, author.text())
            }
            _ => (marked, String::new()),
        }
    }

    pub(super) fn check_count(&self, count: usize) -> Result<(), EngineError> {
        let most = self.settings.transaction_writes_max;
        if count > most {
            return Err(EngineError::TooLarge(format!(
                "transaction of {count} writes or conditions is too large, expected at most {most} \
                 (`transaction_writes_max`; --max-txn-ops of etcd)"
            )));
        }
        Ok(())
    }

    /// As many puts as [`Self::check_size`] lets pass, beside what is asked of one bucket.
    pub(super) fn writes_max(&self, bucket_bytes: usize, entry_bytes: usize) -> usize {
        let prefix = self.keys.prefix().len() + WRITE_BYTES;
        let beside = prefix + 2 * bucket_bytes;
        let left = self.settings.transaction_bytes_max.saturating_sub(beside);
        let by_bytes = left / (prefix + bucket_bytes + entry_bytes);
        by_bytes.min(self.settings.transaction_writes_max)
    }

    /// What etcd would refuse.
    pub(super) fn check_size(&self, transaction: &Transaction) -> Result<(), EngineError> {
        let settings = &self.settings;
        let operations = transaction.writes.len() + marked_in(transaction, false).len();
        let conditions = transaction.conditions.iter();
        let conditions = conditions.filter(|it| !matches!(it, Condition::Sized { .. }));
        self.check_count(operations.max(conditions.count()))?;
        let prefix = self.keys.prefix().len() + WRITE_BYTES;
        let write_bytes = |write: &SharedWrite| {
            let value = write.value.as_ref().map_or(0, |value| value.bytes.len());
            prefix + write.bucket.len() + write.key.len() + value
        };
        let condition_bytes = |condition: &Condition| match condition {
            Condition::At { bucket, key, .. } | Condition::Over { bucket, key, .. } => {
                prefix + bucket.len() + key.len()
            }
            Condition::Unchanged { bucket, .. } | Condition::Sized { bucket, .. } => {
                prefix + 2 * bucket.len()
            }
        };
        let bytes = transaction.writes.iter().map(write_bytes).sum::<usize>()
            + transaction
                .conditions
                .iter()
                .map(condition_bytes)
                .sum::<usize>();
        if bytes > settings.transaction_bytes_max {
            return Err(EngineError::TooLarge(format!(
                "transaction of {bytes} bytes is too large, expected at most {} (`transaction_bytes_max`; \
                 --max-request-bytes of etcd)",
                settings.transaction_bytes_max
            )));
        }
        Ok(())
    }
}

/// Whether the entry stays with the lease that it has.
pub(super) fn keeps_lease(write: &SharedWrite) -> bool {
    let value = write.value.as_ref();
    value.is_some_and(|value| value.life == Life::AsBefore)
}

/// The buckets of which it is noted that it was there: those from which something is deleted, and with its sizes those too.
pub(super) fn marked_in(transaction: &Transaction, with_sizes: bool) -> BTreeSet<&str> {
    let deletes = transaction.writes.iter();
    let deletes = deletes.filter(|write| write.value.is_none());
    let sized = transaction.sized.iter().filter(|_| with_sizes);
    let sized = sized.map(|bucket| &**bucket);
    deletes.map(|write| &*write.bucket).chain(sized).collect()
}

/// A revision as etcd has it. None comes near the bound.
pub(super) fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}
