//! Pages that fit a response, gathered a few items at a time, so that large ones are not held in
//! memory only to be cut off.

use kagzi_core::{Cursor, Page, PageRequest, StoreError};

use super::weight::RESPONSE_BYTES;

/// How many times as many items as the last time the store is asked for at most, if those were light.
const GROWTH: u32 = 8;

/// How many items the store is asked for at a time at most: light ones may be followed by heavy ones.
const AT_A_TIME: u32 = 50;

/// How many items to ask for next: first one, then as many as there is room for if they are like the heaviest so far.
#[derive(Debug)]
struct Pace {
    room: usize,
    heaviest: usize,
    step: u32,
}

impl Pace {
    const fn new() -> Self {
        Self { room: RESPONSE_BYTES, heaviest: 0, step: 1 }
    }

    /// Whether there is room for one more item.
    fn take(&mut self, weight: usize) -> bool {
        self.heaviest = self.heaviest.max(weight);
        let left = self.room.checked_sub(weight);
        self.room = left.unwrap_or(0);
        left.is_some()
    }

    /// Goes on to the next step. Without one, another like the heaviest would not fit.
    fn go_on(&mut self) -> Option<()> {
        let fitting = u32::try_from(self.room / self.heaviest.max(1)).unwrap_or(u32::MAX);
        self.step = self.step.saturating_mul(GROWTH).min(AT_A_TIME).min(fitting);
        (self.step > 0).then_some(())
    }
}

/// Gathers a page until it has as many items as asked for, or another item like its heaviest would not fit a response.
///
/// Of items that are alike no more is fetched than one response holds, or a single one that is heavier. Never are more
/// than [`AT_A_TIME`] fetched at once; so heavy items behind light ones cost that many, once.
pub(super) async fn gather<T, F>(
    page: PageRequest,
    fetch: impl Fn(PageRequest) -> F,
    weigh: impl Fn(&T) -> usize,
    cursor_after: impl Fn(&T) -> Cursor,
) -> Result<Page<T>, StoreError>
where
    F: Future<Output = Result<Page<T>, StoreError>>,
{
    let mut items: Vec<T> = Vec::new();
    let (mut cursor, mut left, mut stride) = (page.cursor, page.limit, Pace::new());
    loop {
        let part = fetch(PageRequest { limit: left.min(stride.step), cursor }).await?;
        left = left.saturating_sub(u32::try_from(part.items.len()).unwrap_or(u32::MAX));
        for item in part.items {
            // One goes out whatever it weighs.
            if !stride.take(weigh(&item)) && !items.is_empty() {
                let next = items.last().map(cursor_after);
                return Ok(Page { items, next });
            }
            items.push(item);
        }
        if left == 0 || part.next.is_none() || stride.go_on().is_none() {
            return Ok(Page { items, next: part.next });
        }
        cursor = part.next;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const MIB: usize = 1024 * 1024;

    /// A listing of items that are what they weigh, and how much of it was fetched, by fetches.
    struct Listing {
        items: Vec<usize>,
        fetched: Mutex<Vec<usize>>,
    }

    impl Listing {
        fn of(items: impl IntoIterator<Item = usize>) -> Self {
            Self { items: items.into_iter().collect(), fetched: Mutex::default() }
        }

        fn at(place: usize) -> Cursor {
            Cursor::from_text(place.to_string())
        }

        /// As a store does it, with the place of each item beside it. Every store reads an item more, to see whether there is one.
        fn fetch(&self, page: &PageRequest) -> Page<(usize, usize)> {
            let from: usize = page.cursor.as_ref().map_or(0, |cursor| cursor.as_str().parse().unwrap());
            let to = self.items.len().min(from + page.limit as usize);
            let read = &self.items[from..self.items.len().min(to + 1)];
            self.fetched.lock().unwrap().push(read.iter().sum());
            let items = (from..to).map(|at| (at, self.items[at])).collect();
            Page { items, next: (to < self.items.len()).then(|| Self::at(to)) }
        }

        /// One page: what it holds, where the next one begins, how many fetches it took, and how many bytes they read.
        async fn page(
            &self,
            limit: u32,
            cursor: Option<Cursor>,
        ) -> (Vec<usize>, Option<Cursor>, usize, usize) {
            let fetch = |page| async move { Ok(self.fetch(&page)) };
            let asked = PageRequest { limit, cursor };
            let page = gather(asked, fetch, |item| item.1, |last| Self::at(last.0 + 1)).await.unwrap();
            let fetched = std::mem::take(&mut *self.fetched.lock().unwrap());
            let places = page.items.into_iter().map(|(place, _)| place).collect();
            (places, page.next, fetched.len(), fetched.iter().sum())
        }
    }

    #[tokio::test]
    async fn for_one_answer_no_more_than_two_are_read_whatever_its_items_weigh() {
        for weight in [1000, 30_000, MIB / 4, MIB, 3 * MIB / 2, 2 * MIB, 3 * MIB, RESPONSE_BYTES] {
            let listing = Listing::of(vec![weight; 3000]);
            let (items, next, fetches, bytes) = listing.page(1000, None).await;
            assert_eq!(items.len(), (RESPONSE_BYTES / weight).min(1000), "{weight}");
            assert_eq!(next, Some(Listing::at(items.len())), "{weight}");
            assert!(bytes <= 2 * RESPONSE_BYTES, "{weight}: {bytes}");
            assert!(fetches <= 22, "{weight}: {fetches}");
        }
        let listing = Listing::of(vec![10 * MIB; 105]);
        assert_eq!(listing.page(1000, None).await, (vec![0], Some(Listing::at(1)), 1, 20 * MIB));
    }

    #[tokio::test]
    async fn light_items_are_fetched_many_at_a_time_and_heavy_ones_behind_them_cost_a_step() {
        let listing = Listing::of(vec![1000; 1000]);
        for (limit, fetches) in [(1, 1), (5, 2), (9, 2), (50, 3), (100, 4), (1000, 22)] {
            assert_eq!(listing.page(limit, None).await.2, fetches, "{limit}");
        }
        let listing = Listing::of((0..500).map(|at| if at < 159 { 100 } else { 2 * MIB }));
        let (items, next, _, bytes) = listing.page(1000, None).await;
        assert_eq!((items.len(), next), (160, Some(Listing::at(160))));
        // One more each of two steps.
        assert!(bytes < (AT_A_TIME as usize + 3) * 2 * MIB, "{bytes}");
    }

    #[tokio::test]
    async fn page_by_page_everything_comes_once_and_in_order() {
        let listing = Listing::of((0..700).map(|at| if at % 7 == 0 { at * 9000 } else { at }));
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let (items, next, ..) = listing.page(300, cursor).await;
            assert!(!items.is_empty());
            seen.extend(items);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, (0..700).collect::<Vec<_>>());
    }
}
