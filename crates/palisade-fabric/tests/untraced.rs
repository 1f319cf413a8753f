//! A process in which nobody listens to spans. It has no other test: whether a span is made is asked once for all.

mod support;

use support::traced::{PARENT, TRACE, given, run};

#[tokio::test]
async fn what_was_given_goes_on_and_nothing_is_made_up() {
    let (_, seen) = run(Some(given())).await;
    let seen = seen[0].as_ref().unwrap();
    assert_eq!(seen.trace_id(), Some(TRACE));
    assert_ne!(seen.parent_span_id(), Some(PARENT), "the attempt is its parent");
    assert_eq!(run(None).await.1, [None, None]);
}
