//! Delta debugging: the shortest list that still fails, as far as dropping pieces of it can tell.

/// Drops pieces of `items`, large ones first, as long as `fails` holds for what is left. `tries` bounds
/// how often that is asked.
///
/// Why not a crate's: each question here is asked of a fresh store, a database even, by way of an async
/// call. Proptest drops one element at a time and would open hundreds of them.
pub(crate) async fn shortest<T: Clone, F: Future<Output = bool>>(
    items: Vec<T>,
    mut tries: usize,
    mut fails: impl FnMut(Vec<T>) -> F,
) -> Vec<T> {
    let mut kept = items;
    let mut piece = kept.len().div_ceil(2);
    while piece > 0 && tries > 0 {
        let mut at = 0;
        let mut dropped = false;
        while at < kept.len() && tries > 0 {
            let rest: Vec<T> = kept[..at].iter().chain(kept.iter().skip(at + piece)).cloned().collect();
            tries -= 1;
            if fails(rest.clone()).await {
                kept = rest;
                dropped = true;
            } else {
                at += piece;
            }
        }
        piece = match piece {
            1 if dropped => 1,
            1 => 0,
            larger => larger / 2,
        };
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::shortest;

    #[tokio::test]
    async fn what_does_not_matter_is_dropped() {
        let items: Vec<u32> = (0..300).collect();
        let mut asked = 0;
        let kept = shortest(items, 1000, |items| {
            asked += 1;
            std::future::ready([17, 18, 250].iter().all(|needed| items.contains(needed)))
        })
        .await;
        assert_eq!(kept, [17, 18, 250]);
        assert!(asked < 100, "{asked} questions");
    }

    #[tokio::test]
    async fn the_number_of_questions_is_bounded() {
        let kept = shortest(vec![0; 64], 3, |_| std::future::ready(false)).await;
        assert_eq!(kept.len(), 64);
    }
}
