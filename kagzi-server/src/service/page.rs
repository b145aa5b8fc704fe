//! Pages that fit a response, gathered a few items at a time, so that large ones are not held in
//! memory only to be cut off.

use kagzi_core::{Cursor, Page, PageRequest, StoreError};

use super::weight;

/// How many items the store is asked for at a time.
const AT_A_TIME: u32 = 100;

/// Gathers a page until it has as many items as asked for or its items fill a response.
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
    let mut cursor = page.cursor;
    let mut left = page.limit;
    loop {
        let part = fetch(PageRequest { limit: left.min(AT_A_TIME), cursor }).await?;
        left = left.saturating_sub(u32::try_from(part.items.len()).unwrap_or(u32::MAX));
        items.extend(part.items);
        let kept = weight::fitting(&items, &weigh);
        if kept < items.len() {
            items.truncate(kept);
            let next = items.last().map(cursor_after);
            return Ok(Page { items, next });
        }
        if left == 0 || part.next.is_none() {
            return Ok(Page { items, next: part.next });
        }
        cursor = part.next;
    }
}
