from npllm.tokenizer.byte_table import BYTE_TO_ID, ID_TO_BYTE, bytes_to_text, text_to_bytes


def test_the_stand_ins_are_those_of_gpt2():
    assert bytes_to_text(b" the\n") == "ĠtheĊ"
    assert bytes_to_text(bytes([0x00, 0x7F, 0xA0, 0xAD, 0xFF])) == "ĀġłŃÿ"


def test_printable_bytes_come_first_in_the_ids():
    assert BYTE_TO_ID[ord("!")] == 0
    assert BYTE_TO_ID[ord("a")] == 64
    assert BYTE_TO_ID[0xFF] == 187
    assert BYTE_TO_ID[0x00] == 188
    assert BYTE_TO_ID[ord(" ")] == 220
    assert BYTE_TO_ID[0xAD] == 255


def test_both_tables_are_one_to_one():
    every_byte = bytes(range(256))
    assert text_to_bytes(bytes_to_text(every_byte)) == every_byte
    assert [ID_TO_BYTE[i] for i in BYTE_TO_ID] == list(range(256))
