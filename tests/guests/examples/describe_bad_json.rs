//! Describes itself with text that is no JSON.
guests::guest!(|| Ok(()), || "{\"name\": \"describe-bad-json\", "
    .to_owned());
