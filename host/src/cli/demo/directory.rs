//! The demonstration's directory, removed whatever ends it.

use std::path::Path;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// Attempts to remove a directory in which others may still make files.
const ATTEMPTS: usize = 20;
/// From a removal until it is looked whether it held.
const SETTLE: Duration = Duration::from_millis(20);

/// A temporary directory, and a thread that takes signals from before it exists: at one that nobody waits for, as in
/// the middle of the start or at the second Ctrl-C, it removes the directory and ends the process.
pub(super) struct Directory {
    directory: TempDir,
    interrupted: watch::Receiver<bool>,
    awaited: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Directory {
    /// Makes it.
    ///
    /// # Errors
    /// If it cannot be made, or signals cannot be watched.
    pub(super) fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let signals = {
            let _entered = runtime.enter();
            Signals {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                hangup: signal(SignalKind::hangup())?,
            }
        };
        let directory = tempfile::Builder::new()
            .prefix("throwbar-demo-")
            .tempdir()?;
        let (first, interrupted) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let awaited = Arc::new(AtomicBool::new(false));
        let (path, is_awaited) = (directory.path().to_owned(), Arc::clone(&awaited));
        let thread = std::thread::Builder::new()
            .name("demo-signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        never = watch_over(&path, signals, &first, &is_awaited) => match never {},
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            directory,
            interrupted,
            awaited,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// From now on the first signal ends nothing by itself: [`Directory::interrupted`] tells of it.
    pub(super) fn await_signals(&self) {
        self.awaited.store(true, Relaxed);
    }

    /// Returns at the first signal.
    pub(super) async fn interrupted(&self) {
        // The thread lives as long as this does.
        let _ = self
            .interrupted
            .clone()
            .wait_for(|interrupted| *interrupted)
            .await;
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was shown when it happened.
            let _ = thread.join();
        }
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn watch_over(
    directory: &Path,
    mut signals: Signals,
    first: &watch::Sender<bool>,
    awaited: &AtomicBool,
) -> std::convert::Infallible {
    loop {
        signals.next().await;
        if first.send_replace(true) || !awaited.load(Relaxed) {
            for _ in 0..ATTEMPTS {
                // What cannot be removed yet is tried again.
                let _ = std::fs::remove_dir_all(directory);
                // A thread in the middle of the start may make it once more.
                std::thread::sleep(SETTLE);
                if !directory.exists() {
                    break;
                }
            }
            exit(1);
        }
    }
}
