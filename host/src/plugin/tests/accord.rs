//! A fleet that says what the test has it say: what is asked of it, and what is done if it disagrees or is away.

use super::guest::replies;
use super::*;
use crate::plugin::guard::Verdict;
use crate::plugin::{
    Accord, Agreeing, Agreement, Base, Fraction, Order, Overtaken, Role, Share, Step, Wanted,
};
use crate::store::Revision;
use std::sync::Mutex;
use std::time::Instant;

const ORDER: Order<'_> = Order {
    by: "test",
    dry_run: false,
    force: false,
};

/// What it says to the next change.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    Yes,
    No,
    Nothing,
    /// Something else was agreed on already.
    Else,
}

struct Fleet {
    says: Mutex<Says>,
    agreed: Mutex<Vec<(Agreement, String)>>,
}

impl Fleet {
    fn join(bench: &Bench) -> Arc<Self> {
        let fleet = Arc::new(Self {
            says: Mutex::new(Says::Yes),
            agreed: Mutex::default(),
        });
        bench
            .plugins
            .set_accord(Arc::clone(&fleet) as Arc<dyn Accord>);
        fleet
    }

    fn say(&self, says: Says) {
        *self.says.lock().expect("whole") = says;
    }

    fn last(&self) -> Option<(Agreement, String)> {
        self.agreed.lock().expect("whole").last().cloned()
    }

    fn count(&self) -> usize {
        self.agreed.lock().expect("whole").len()
    }
}

impl Accord for Fleet {
    fn base(&self, _: &str) -> Result<Base, DeployError> {
        if *self.says.lock().expect("whole") == Says::Else {
            return Err(DeployError::Disagreed("about to take another".to_owned()));
        }
        let agreed = self.last().map(|(agreed, _)| agreed);
        let revision = agreed.as_ref().map(|_| Revision(self.count() as u64));
        Ok(Base { revision, agreed })
    }

    fn agree<'a>(
        &'a self,
        _: &'a str,
        base: &'a Base,
        wanted: Agreement,
        by: &'a str,
    ) -> Agreeing<'a, ()> {
        assert_eq!(base.agreed, self.last().map(|(agreed, _)| agreed));
        let answer = match *self.says.lock().expect("whole") {
            Says::Yes => Ok(()),
            Says::Nothing => Err(DeployError::Fleet("away".to_owned())),
            _ => Err(DeployError::Disagreed("others were faster".to_owned())),
        };
        if answer.is_ok() {
            let mut agreed = self.agreed.lock().expect("whole");
            agreed.push((wanted, by.to_owned()));
        }
        Box::pin(std::future::ready(answer))
    }

    fn prepare<'a>(
        &'a self,
        _: &'a str,
        _: &'a Base,
        _: Agreement,
        _: &'a str,
    ) -> Agreeing<'a, WriteBatch> {
        panic!("nothing is written beside")
    }

    fn overtaken<'a>(&'a self, _: &'a str) -> Overtaken<'a> {
        Box::pin(std::future::pending())
    }
}

fn verdict() -> Verdict {
    Verdict {
        limit: "traps",
        reason: "5 traps".to_owned(),
        decided: Instant::now(),
    }
}

/// The guard judges the active version.
async fn judge(bench: &Bench) {
    let slot = bench.plugins.slot("p").expect("a slot");
    let id = bench.active().id();
    bench.plugins.take_back(&slot, id, &verdict()).await;
}

fn share(percent: f64) -> Share {
    Share {
        fraction: Fraction::percent(percent).expect("a percentage"),
        field: "path".parse().expect("a field"),
    }
}

#[tokio::test]
async fn nothing_is_changed_without_the_fleet() {
    let bench = Bench::new().await;
    let fleet = Fleet::join(&bench);
    bench.deploy(replies(201)).await.expect("a version");
    for (says, expected) in [
        (Says::No, "others were faster"),
        (Says::Nothing, "fleet: away"),
        (Says::Else, "about to take another"),
    ] {
        fleet.say(says);
        let refused = bench.deploy(replies(202)).await;
        assert_eq!(refused.expect_err("refused").to_string(), expected);
        assert_eq!(bench.status(), 201);
    }
    // What is only tried here is nobody else's matter.
    let order = Order {
        dry_run: true,
        ..ORDER
    };
    fleet.say(Says::No);
    let wanted = || Wanted::Component(replies(202).into());
    let tried = bench.plugins.bring("p", wanted(), Role::Active, order);
    tried.await.expect("it would be accepted");
    let shadow = Role::Shadow(Fraction::ALL);
    let compared = bench.plugins.bring("p", wanted(), shadow, ORDER);
    compared.await.expect("a shadow");
    assert_eq!(fleet.count(), 1);
}

#[tokio::test]
async fn a_step_that_the_fleet_agreed_on_is_not_agreed_on_again() {
    let bench = Bench::new().await;
    let fleet = Fleet::join(&bench);
    fleet.say(Says::No);
    let first: Bytes = replies(201).into();
    let second: Bytes = replies(202).into();
    let (one, two) = (digest(&first), digest(&second));
    let take = async |step, component| {
        let taken = bench.plugins.take_step("p", step, component, ORDER, false);
        taken.await.expect("taken");
    };
    take(Step::Activate(one.clone()), Some(first)).await;
    take(Step::Canary(two.clone(), share(5.0)), Some(second)).await;
    take(Step::Share(share(7.0)), None).await;
    let present = bench.plugins.present("p").expect("the plugin");
    assert_eq!(present.canary, Some((two.clone(), share(7.0))));
    take(Step::Abort, None).await;
    take(Step::Canary(two.clone(), share(9.0)), None).await;
    take(Step::Promote, None).await;
    let reason = "5 traps".to_owned();
    let mark = Step::Mark {
        version: one.clone(),
        reason,
    };
    take(mark, None).await;
    let present = bench.plugins.present("p").expect("the plugin");
    assert_eq!((present.active, present.canary), (Some(two), None));
    assert!(present.failing.contains(&one));
    assert_eq!(fleet.count(), 0);
}

#[tokio::test]
async fn what_the_guard_takes_back_is_taken_back_everywhere() {
    let bench = Bench::new().await;
    let fleet = Fleet::join(&bench);
    bench.deploy(replies(201)).await.expect("a version");
    bench.deploy(replies(202)).await.expect("a version");
    let failing = bench.active().label().digest.to_string();
    judge(&bench).await;
    assert_eq!(bench.status(), 201);
    let (agreed, by) = fleet.last().expect("agreed");
    assert_eq!(agreed.active, digest(&replies(201)));
    assert_eq!(agreed.failing, Some((failing, "5 traps".to_owned())));
    assert_eq!(
        (by.as_str(), agreed.force, agreed.back),
        ("guard", true, true)
    );
}

#[tokio::test]
async fn the_guard_leaves_a_version_that_others_are_about_to_replace() {
    let bench = Bench::new().await;
    let fleet = Fleet::join(&bench);
    bench.deploy(replies(201)).await.expect("a version");
    bench.deploy(replies(202)).await.expect("a version");
    for says in [Says::Else, Says::No] {
        fleet.say(says);
        judge(&bench).await;
        assert_eq!(bench.status(), 202);
    }
    // Nobody can be asked: this node goes back by itself.
    fleet.say(Says::Nothing);
    judge(&bench).await;
    assert_eq!(bench.status(), 201);
    assert_eq!(fleet.count(), 2);
}

#[tokio::test]
async fn a_canary_that_the_guard_aborts_is_aborted_everywhere() {
    let bench = Bench::new().await;
    let fleet = Fleet::join(&bench);
    bench.deploy(replies(201)).await.expect("a version");
    let wanted = Wanted::Component(replies(202).into());
    let role = Role::Canary(share(100.0));
    bench
        .plugins
        .bring("p", wanted, role, ORDER)
        .await
        .expect("a canary");
    let (agreed, _) = fleet.last().expect("agreed");
    let version = digest(&replies(202));
    assert_eq!(agreed.canary, Some((version.clone(), share(100.0))));
    let slot = bench.plugins.slot("p").expect("a slot");
    let id = slot.canary_for(&head()).expect("a canary").id();
    bench.plugins.take_back(&slot, id, &verdict()).await;
    let present = bench.plugins.present("p").expect("the plugin");
    assert_eq!(present.canary, None);
    let (agreed, _) = fleet.last().expect("agreed");
    assert_eq!(
        (agreed.active, agreed.canary),
        (digest(&replies(201)), None)
    );
    assert_eq!(agreed.failing, Some((version, "5 traps".to_owned())));
}
