//! A list by number that is copied in constant time: copies share pages until one changes them.

use std::sync::Arc;

const PAGE: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Pages<T>(Arc<Vec<Arc<[Option<T>; PAGE]>>>);

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Copy> Pages<T> {
    pub(super) fn get(&self, number: u16) -> Option<&T> {
        let number = usize::from(number);
        self.0.get(number / PAGE)?[number % PAGE].as_ref()
    }

    pub(super) fn set(&mut self, number: u16, value: Option<T>) {
        let number = usize::from(number);
        let pages = Arc::make_mut(&mut self.0);
        while pages.len() <= number / PAGE {
            pages.push(Arc::new([None; PAGE]));
        }
        Arc::make_mut(&mut pages[number / PAGE])[number % PAGE] = value;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|page| page.iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut pages = Pages::default();
        for number in [1, 63, 64, 65_535] {
            pages.set(number, Some(number));
        }
        let copy = pages.clone();
        pages.set(64, None);
        pages.set(1, Some(7));
        assert_eq!(pages.iter().collect::<Vec<_>>(), [&7, &63, &65_535]);
        assert_eq!(copy.iter().collect::<Vec<_>>(), [&1, &63, &64, &65_535]);
        assert_eq!(
            (copy.get(64), pages.get(64), copy.get(2)),
            (Some(&64), None, None)
        );
        // Pages that have not changed are the same.
        assert!(Arc::ptr_eq(&copy.0[1023], &pages.0[1023]));
        assert!(!Arc::ptr_eq(&copy.0[1], &pages.0[1]));
    }
}
