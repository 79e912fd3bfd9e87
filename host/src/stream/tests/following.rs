//! Streams whose own entry changes.

use super::super::frame::close_frame;
use super::*;
use crate::plugin::decision::Follow;
use crate::store::{
    BackendKind, BucketConfig, BucketId, OnChange, Snapshot, Store, Value, ValueKind, Write,
    WriteBatch,
};

const OVER: Duration = Duration::from_secs(10);

/// A store of one bucket with this value under `id1` and `id2`.
async fn store(value: &str) -> (Store, BucketId) {
    let bucket = BucketConfig::new("map", BackendKind::Memory, ValueKind::Endpoint);
    let store = Store::scratch(&[bucket]).expect("in memory");
    let bucket = store.snapshot().bucket_id("map").expect("it has it");
    for key in ["id1", "id2"] {
        set(&store, bucket, key, Some(value)).await;
    }
    (store, bucket)
}

async fn set(store: &Store, bucket: BucketId, key: &str, value: Option<&str>) -> Arc<Snapshot> {
    let write = match value {
        Some(value) => Write::put(bucket, key, value.as_bytes()),
        None => Write::delete(bucket, key),
    };
    let batch = WriteBatch {
        writes: vec![write],
        ..WriteBatch::default()
    };
    store.commit(batch).await.expect("written");
    store.snapshot()
}

fn following(bucket: BucketId, key: &str, value: &str, on_change: OnChange) -> Following {
    Following {
        entry: Follow {
            bucket,
            key: key.into(),
            value: Value::Target(value.parse().expect("an address")),
            on_change,
        },
        is_current: Box::new(|_| true),
    }
}

impl Worker {
    async fn open_following(&self, bucket: BucketId, key: &str, on_change: OnChange) -> Ends {
        let follow = following(bucket, key, "10.0.0.1:80", on_change);
        self.open_as(|new| new.follow = Some(follow)).await
    }

    fn followed(&self) -> u64 {
        self.counted(|of| &of.followed_buckets)
    }
}

#[test]
fn a_change_closes_those_that_follow_it_with_the_next_tick() {
    on_worker(Config::default(), |mut worker| async move {
        let start = Instant::now();
        let (store, bucket) = store("10.0.0.1:80").await;
        assert_eq!(worker.followed(), 0);
        let mut first = worker.open_following(bucket, "id1", OnChange::Close).await;
        let second = worker.open_following(bucket, "id2", OnChange::Close).await;
        let other = worker.open().await;
        assert_eq!(worker.followed(), bucket.bit());
        let keys = [(bucket, "id1".into()), (bucket, "id9".into())];
        let tell = |snapshot: Arc<Snapshot>| worker.streams.entries_changed(&snapshot, &keys);
        // News of a value that it has: there and back.
        tell(store.snapshot());
        worker.streams.sweep(start + Duration::from_secs(1));
        assert_eq!(worker.counted(|of| &of.streams_closed), 0);
        tell(set(&store, bucket, "id1", Some("10.0.0.1:81")).await);
        worker.streams.sweep(start + Duration::from_secs(2));
        expect(&mut first.client, &close_frame(1012, "entry changed", None)).await;
        drop(first);
        let closed = worker.next_closed().await;
        assert_eq!(closed.reason, CloseReason::OnChange);
        assert_eq!(worker.streams.len(), 2);
        assert_eq!(worker.followed(), bucket.bit());
        drop((second, other));
        worker.streams.drained().await;
        assert_eq!(worker.followed(), 0);
    });
}

#[test]
fn streams_of_a_drained_entry_are_closed_evenly_after_their_time() {
    on_worker(Config::default(), |worker| async move {
        let start = Instant::now();
        let (store, bucket) = store("10.0.0.1:80").await;
        let after = Duration::from_secs(5);
        let drain = OnChange::Drain { after, over: OVER };
        let mut all = Vec::new();
        for _ in 0..100 {
            all.push(worker.open_following(bucket, "id1", drain).await);
        }
        worker.streams.sweep(start);
        let gone = set(&store, bucket, "id1", None).await;
        let keys = [(bucket, "id1".into())];
        worker.streams.entries_changed(&gone, &keys);
        let closing = |seconds: u64| {
            let now = start + after + Duration::from_secs(seconds);
            worker.streams.sweep(now);
            // Told again meanwhile, they keep their times.
            worker.streams.entries_changed(&gone, &keys);
            worker.streams.sweep(now + Duration::from_millis(1));
            worker.streams.select(&StreamFilter::default()).len()
        };
        for second in 0..=10_usize {
            let open = closing(second as u64);
            let ideal = 100 - second * 10;
            assert!(open.abs_diff(ideal) <= 4, "{open} open after {second} s");
        }
        assert_eq!(closing(11), 0);
    });
}

#[test]
fn a_stream_that_is_outdated_when_it_opens_is_closed_too() {
    on_worker(Config::default(), |mut worker| async move {
        let (_store, bucket) = store("10.0.0.2:80").await;
        let mut follow = following(bucket, "id1", "10.0.0.1:80", OnChange::Close);
        follow.is_current = Box::new(|_| false);
        let mut ends = worker.open_as(|new| new.follow = Some(follow)).await;
        worker
            .streams
            .sweep(Instant::now() + Duration::from_secs(1));
        expect(&mut ends.client, &close_frame(1012, "entry changed", None)).await;
        drop(ends);
        assert_eq!(worker.next_closed().await.reason, CloseReason::OnChange);
    });
}

#[test]
fn a_change_of_everything_is_acted_on_tick_by_tick() {
    on_worker(Config::default(), |worker| async move {
        let (store, bucket) = store("10.0.0.1:80").await;
        let mut all = Vec::new();
        for _ in 0..600 {
            all.push(worker.open_following(bucket, "id1", OnChange::Close).await);
        }
        let start = Instant::now();
        let gone = set(&store, bucket, "id1", None).await;
        worker
            .streams
            .entries_changed(&gone, &[(bucket, "id1".into())]);
        let mut open = Vec::new();
        for tick in 1..=3 {
            worker
                .streams
                .sweep(start + Duration::from_millis(100) * tick);
            open.push(worker.streams.select(&StreamFilter::default()).len());
        }
        assert_eq!(open, [100, 0, 0]);
    });
}
