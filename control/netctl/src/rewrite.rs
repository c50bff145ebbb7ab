//! Contiv's multi-letter flags with one dash (`-s6`, `-g6`, `-tag`, `-ip`), rewritten to their long
//! forms before clap sees them. To clap `-tag` would be `-t ag`: a tenant named "ag".
//!
//! Only words after the verb that has the flag in Contiv are touched, and nothing after `--`.

use std::ffi::OsString;

/// A command and its multi-letter flags: as Contiv spells them, and their long forms.
struct Command {
    /// The noun and its alias.
    nouns: &'static [&'static str],
    verb: &'static str,
    flags: &'static [(&'static str, &'static str)],
}

const COMMANDS: &[Command] = &[
    Command {
        nouns: &["network", "net"],
        verb: "create",
        flags: &[("-s6", "--subnetv6"), ("-g6", "--gatewayv6"), ("-tag", "--nw-tag")],
    },
    Command { nouns: &["group"], verb: "create", flags: &[("-tag", "--epg-tag")] },
    Command { nouns: &["service"], verb: "create", flags: &[("-ip", "--preferred-ip")] },
];

/// Rewrites the arguments of one run (the program's name first). `-s6=X` is rewritten like `-s6 X`.
pub(crate) fn contiv_flags(argv: Vec<OsString>) -> Vec<OsString> {
    let mut flags: &[(&str, &str)] = &[];
    let mut previous: Option<String> = None;
    let mut ended = false;
    let mut out = Vec::with_capacity(argv.len());
    for word in argv {
        ended |= word == "--";
        let text = word.to_str().map(str::to_owned);
        if let (Some(noun), Some(verb)) = (&previous, &text)
            && let Some(found) = flags_of(noun, verb)
        {
            flags = found;
        }
        let long = if ended { None } else { text.as_deref().and_then(|t| long_form(flags, t)) };
        out.push(long.map_or(word, OsString::from));
        previous = text;
    }
    out
}

fn flags_of(noun: &str, verb: &str) -> Option<&'static [(&'static str, &'static str)]> {
    let named = |command: &&Command| command.nouns.contains(&noun) && command.verb == verb;
    COMMANDS.iter().find(named).map(|command| command.flags)
}

fn long_form(flags: &[(&str, &str)], word: &str) -> Option<String> {
    let (flag, value) = match word.split_once('=') {
        Some((flag, value)) => (flag, Some(value)),
        None => (word, None),
    };
    let (_, long) = flags.iter().find(|(short, _)| *short == flag)?;
    Some(value.map_or_else(|| (*long).to_owned(), |value| format!("{long}={value}")))
}

#[cfg(test)]
mod tests {
    use super::contiv_flags;

    fn rewritten(line: &str) -> String {
        let argv = line.split(' ').map(Into::into).collect();
        let out: Vec<_> =
            contiv_flags(argv).into_iter().map(|w| w.into_string().unwrap()).collect();
        out.join(" ")
    }

    #[test]
    fn the_flags_of_network_create_get_their_long_forms() {
        assert_eq!(
            rewritten("netctl net create -t blue -s6 2001:db8::/64 -g6 2001:db8::1 -tag web n1"),
            "netctl net create -t blue --subnetv6 2001:db8::/64 --gatewayv6 2001:db8::1 --nw-tag web n1"
        );
        assert_eq!(
            rewritten("netctl network create -s6=2001:db8::/64 n1"),
            "netctl network create --subnetv6=2001:db8::/64 n1"
        );
    }

    #[test]
    fn tag_means_the_group_tag_in_group_create() {
        assert_eq!(
            rewritten("netctl --netmaster unix:/s group create -tag web n1 g1"),
            "netctl --netmaster unix:/s group create --epg-tag web n1 g1"
        );
        assert_eq!(
            rewritten("netctl service create -ip 10.1.1.3"),
            "netctl service create --preferred-ip 10.1.1.3"
        );
    }

    #[test]
    fn other_commands_and_words_after_two_dashes_are_left_alone() {
        for line in [
            "netctl tenant create -tag",
            "netctl policy rule-add -tag p 1 -s 10.1.1.5",
            "netctl net ls -tag",
            "netctl net create -s 10.1.1.0/24 -- -tag",
            "netctl net create -s 10.1.1.0/24 -t tag",
            "netctl",
        ] {
            assert_eq!(rewritten(line), line);
        }
    }

    #[test]
    fn words_that_are_not_unicode_pass_through() {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = std::ffi::OsString::from_vec(vec![b'-', 0xff]);
        let argv = vec!["netctl".into(), "net".into(), "create".into(), odd.clone()];
        assert_eq!(contiv_flags(argv)[3], odd);
    }
}
