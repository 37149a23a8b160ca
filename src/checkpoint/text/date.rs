//! The date that a chat template is told: one and the same on every day.

use std::fmt;

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    year: u32,
    month: u32,
    day: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl Default for Date {
    /// What Llama 3's template takes where it is told no date.
    fn default() -> Self {
        Self { year: 2024, month: 7, day: 26 }
    }
}

impl Date {
    /// Reads `YYYY-MM-DD`; `None` for anything else, and for days that there are not.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = |part: &str, count: usize| {
            let fits = part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit());
            fits.then(|| part.parse().ok()).flatten()
        };
        let (year, rest) = text.split_once('-')?;
        let (month, day) = rest.split_once('-')?;
        let date = Self { year: digits(year, 4)?, month: digits(month, 2)?, day: digits(day, 2)? };
        let exists = (1..=12).contains(&date.month)
            && (1..=date.month_lengths()[date.month as usize - 1]).contains(&date.day);
        (date.year > 0 && exists).then_some(date)
    }

    fn month_lengths(self) -> [u32; 12] {
        let leap = self.year.is_multiple_of(4)
            && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    }

    fn day_of_year(self) -> u32 {
        self.month_lengths()[..self.month as usize - 1].iter().sum::<u32>() + self.day
    }

    /// Days since Sunday. 1 January of year 1 was a Monday.
    fn weekday(self) -> u32 {
        let before = self.year - 1;
        (365 * before + before / 4 - before / 100 + before / 400 + self.day_of_year()) % 7
    }

    /// Midnight of the day by the directives of C's `strftime` that templates use.
    ///
    /// # Errors
    /// Another directive.
    pub(super) fn format(self, format: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            let mut directive = characters.next();
            let unpadded = directive == Some('-');
            if unpadded {
                directive = characters.next();
            }
            let number = |value: u32, width: usize| match unpadded {
                true => value.to_string(),
                false => format!("{value:0width$}"),
            };
            let month = MONTHS[self.month as usize - 1];
            let weekday = WEEKDAYS[self.weekday() as usize];
            let part = match directive {
                Some('Y') => number(self.year, 4),
                Some('y') => number(self.year % 100, 2),
                Some('m') => number(self.month, 2),
                Some('B') => month.to_owned(),
                Some('b' | 'h') => month[..3].to_owned(),
                Some('d') => number(self.day, 2),
                Some('e') => format!("{:2}", self.day),
                Some('j') => number(self.day_of_year(), 3),
                Some('A') => weekday.to_owned(),
                Some('a') => weekday[..3].to_owned(),
                Some('w') => self.weekday().to_string(),
                Some('F') => self.to_string(),
                Some('D' | 'x') => self.format("%m/%d/%y")?,
                Some('H' | 'M' | 'S') => number(0, 2),
                Some('I') => "12".to_owned(),
                Some('p') => "AM".to_owned(),
                Some('T' | 'X') => "00:00:00".to_owned(),
                Some('%') => "%".to_owned(),
                _ => {
                    return Err(format!(
                        "strftime_now: {format:?} has a directive that is unknown"
                    ));
                }
            };
            text.push_str(&part);
        }
        Ok(text)
    }
}
