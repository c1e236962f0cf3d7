"""The text of HTML pages."""

import pytest

from npllm.data.html_text import text_of_html


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>one\n  <b>two</b> three</p>", "one two three\n"),
        ("<h1>A</h1><p>b<p>c<br>d<br><br>e", "A\n\nb\n\nc\nd\n\ne\n"),
        ("<pre>a\n  b</pre> c", "a\n  b\n\nc\n"),
        ("a<script>if (x < y) { '</p>' }</script>b<style>p {}</style><!-- c -->d", "abd\n"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1 2\n3\n"),
        ("&lt;b&gt; &amp;&nbsp;&#228;", "<b> &\xa0ä\n"),
        ("a < b and <unclosed", "a < b and <unclosed\n"),
        ("<ul><li>x</li><li>y</li></ul>", "x\ny\n"),
        ("</script></pre>a<template><p>b</template>c", "ac\n"),
        ("", ""),
    ],
)
def test_text_of_html(page, text):
    assert text_of_html(page) == text
