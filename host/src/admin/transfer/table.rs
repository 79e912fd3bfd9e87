//! Where the rows of a table in CSV end, as it arrives: a quoted cell may hold line breaks.

/// How far a table is read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// At the beginning of a cell.
    #[default]
    Begin,
    /// In a cell that is not quoted.
    Plain,
    /// In a quoted one.
    Quoted,
    /// After a quote in one: its end, or the first of two that stand for one.
    Quote,
}

impl Rows {
    /// Reads on, and says where the last row ends that ends there: after its line break.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut end = None;
        for (at, byte) in bytes.iter().enumerate() {
            *self = match (*self, byte) {
                (Self::Begin, b'"') | (Self::Quote, b'"') => Self::Quoted,
                (Self::Quoted, b'"') => Self::Quote,
                (Self::Quoted, _) => Self::Quoted,
                (_, b'\n') => {
                    end = Some(at + 1);
                    Self::Begin
                }
                (_, b',' | b'\r') => Self::Begin,
                _ => Self::Plain,
            };
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(text: &str) -> Option<usize> {
        Rows::default().read(text.as_bytes())
    }

    #[test]
    fn a_line_break_in_quotes_ends_no_row() {
        assert_eq!(ends("a,b\nc"), Some(4));
        assert_eq!(ends("a,\"b\nc"), None);
        assert_eq!(ends("a,\"b\nc\"\n"), Some(8));
        assert_eq!(ends("\"a \"\"\n\"\"\"\r\n\"\n"), Some(11));
        // Only a cell that begins with a quote is quoted.
        assert_eq!(ends("a\"b\n"), Some(4));
        assert_eq!(ends(""), None);
    }

    proptest! {
        #[test]
        fn rows_end_where_the_reader_of_the_whole_has_them_end(
            text in "[a\",\n]{0,40}", cut in 0_usize..40,
        ) {
            let bytes = text.as_bytes();
            let (first, rest) = bytes.split_at(cut.min(bytes.len()));
            let mut rows = Rows::default();
            let (one, two) = (rows.read(first), rows.read(rest));
            let end = two.map(|end| first.len() + end).or(one).unwrap_or(0);
            let read = |bytes: &[u8]| {
                let mut reader = csv::ReaderBuilder::new();
                let mut reader = reader.flexible(true).has_headers(false).from_reader(bytes);
                let rows: Result<Vec<csv::ByteRecord>, _> = reader.byte_records().collect();
                rows.expect("memory can be read")
            };
            let both = [read(&bytes[..end]), read(&bytes[end..])].concat();
            prop_assert_eq!(both, read(bytes));
        }
    }
}
