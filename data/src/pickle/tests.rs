//! Pickles of real Pythons, pickles Python 2 wrote, and pickles that mean harm.

use super::*;

// Made by Python 3.11 with numpy 2.4, one for each protocol from 0 to 5, with k = str.encode and
// then k = str:
//
//     {k('batch_label'): k('training batch 1 of 5'), k('labels'): [6, 9, 300, 70000, -1],
//      k('data'): numpy.arange(24, dtype='u1').reshape(2, 12) * 11,
//      k('filenames'): [k('a.png'), k('b.png')]}
//
const BYTES_KEYS: [&str; 6] = [
    "286470300a635f636f646563730a656e636f64650a70310a285662617463685f6c6162656c0a70320a566c6174\
     696e310a70330a7470340a5270350a67310a2856747261696e696e672062617463682031206f6620350a70360a\
     67330a7470370a5270380a7367310a28566c6162656c730a70390a67330a747031300a527031310a286c703132\
     0a49360a6149390a61493330300a614937303030300a61492d310a617367310a2856646174610a7031330a6733\
     0a747031340a527031350a636e756d70792e5f636f72652e6d756c746961727261790a5f7265636f6e73747275\
     63740a7031360a28636e756d70790a6e6461727261790a7031370a2849300a747031380a67310a2856620a7031\
     390a67330a747032300a527032310a747032320a527032330a2849310a2849320a4931320a747032340a636e75\
     6d70790a64747970650a7032350a285675310a7032360a4930300a4930310a747032370a527032380a2849330a\
     567c0a7032390a4e4e4e492d310a492d310a49300a747033300a624930300a67310a28565c75303030300b1621\
     2c37424d58636e79848f9aa5b0bbc6d1dce7f2fd0a7033310a67330a747033320a527033330a747033340a6273\
     67310a285666696c656e616d65730a7033350a67330a747033360a527033370a286c7033380a67310a2856612e\
     706e670a7033390a67330a747034300a527034310a6167310a2856622e706e670a7034320a67330a747034330a\
     527034340a61732e",
    "7d710028635f636f646563730a656e636f64650a710128580b00000062617463685f6c6162656c710258060000\
     006c6174696e3171037471045271056801285815000000747261696e696e672062617463682031206f66203571\
     06680374710752710868012858060000006c6162656c737109680374710a52710b5d710c284b064b094d2c014a\
     701101004affffffff65680128580400000064617461710d680374710e52710f636e756d70792e5f636f72652e\
     6d756c746961727261790a5f7265636f6e7374727563740a711028636e756d70790a6e6461727261790a711128\
     4b0074711268012858010000006271136803747114527115747116527117284b01284b024b0c747118636e756d\
     70790a64747970650a71192858020000007531711a4930300a4930310a74711b52711c284b0358010000007c71\
     1d4e4e4e4affffffff4affffffff4b0074711e624930300a6801285824000000000b16212c37424d58636e79c2\
     84c28fc29ac2a5c2b0c2bbc386c391c39cc3a7c3b2c3bd711f6803747120527121747122626801285809000000\
     66696c656e616d6573712368037471245271255d7126286801285805000000612e706e67712768037471285271\
     296801285805000000622e706e67712a680374712b52712c65752e",
    "80027d710028635f636f646563730a656e636f64650a7101580b00000062617463685f6c6162656c7102580600\
     00006c6174696e31710386710452710568015815000000747261696e696e672062617463682031206f66203571\
     066803867107527108680158060000006c6162656c737109680386710a52710b5d710c284b064b094d2c014a70\
     1101004affffffff656801580400000064617461710d680386710e52710f636e756d70792e5f636f72652e6d75\
     6c746961727261790a5f7265636f6e7374727563740a7110636e756d70790a6e6461727261790a71114b008571\
     12680158010000006271136803867114527115877116527117284b014b024b0c867118636e756d70790a647479\
     70650a711958020000007531711a898887711b52711c284b0358010000007c711d4e4e4e4affffffff4affffff\
     ff4b0074711e628968015824000000000b16212c37424d58636e79c284c28fc29ac2a5c2b0c2bbc386c391c39c\
     c3a7c3b2c3bd711f6803867120527121747122626801580900000066696c656e616d6573712368038671245271\
     255d71262868015805000000612e706e677127680386712852712968015805000000622e706e67712a68038671\
     2b52712c65752e",
    "80037d710028430b62617463685f6c6162656c71014315747261696e696e672062617463682031206f66203571\
     0243066c6162656c7371035d7104284b064b094d2c014a701101004affffffff654304646174617105636e756d\
     70792e5f636f72652e6d756c746961727261790a5f7265636f6e7374727563740a7106636e756d70790a6e6461\
     727261790a71074b00857108430162710987710a52710b284b014b024b0c86710c636e756d70790a6474797065\
     0a710d58020000007531710e898887710f527110284b0358010000007c71114e4e4e4affffffff4affffffff4b\
     0074711262894318000b16212c37424d58636e79848f9aa5b0bbc6d1dce7f2fd711374711462430966696c656e\
     616d657371155d7116284305612e706e6771174305622e706e67711865752e",
    "80049512010000000000007d9428430b62617463685f6c6162656c944315747261696e696e6720626174636820\
     31206f6620359443066c6162656c73945d94284b064b094d2c014a701101004affffffff65430464617461948c\
     166e756d70792e5f636f72652e6d756c74696172726179948c0c5f7265636f6e7374727563749493948c056e75\
     6d7079948c076e6461727261799493944b0085944301629487945294284b014b024b0c869468098c0564747970\
     659493948c02753194898887945294284b038c017c944e4e4e4affffffff4affffffff4b00749462894318000b\
     16212c37424d58636e79848f9aa5b0bbc6d1dce7f2fd94749462430966696c656e616d6573945d94284305612e\
     706e67944305622e706e679465752e",
    "800595fd000000000000007d9428430b62617463685f6c6162656c944315747261696e696e6720626174636820\
     31206f6620359443066c6162656c73945d94284b064b094d2c014a701101004affffffff65430464617461948c\
     136e756d70792e5f636f72652e6e756d65726963948c0b5f66726f6d6275666665729493942896180000000000\
     0000000b16212c37424d58636e79848f9aa5b0bbc6d1dce7f2fd948c056e756d7079948c056474797065949394\
     8c02753194898887945294284b038c017c944e4e4e4affffffff4affffffff4b007494624b024b0c86948c0143\
     9474945294430966696c656e616d6573945d94284305612e706e67944305622e706e679465752e",
];
const TEXT_KEYS: [&str; 6] = [
    "286470300a5662617463685f6c6162656c0a70310a56747261696e696e672062617463682031206f6620350a70\
     320a73566c6162656c730a70330a286c70340a49360a6149390a61493330300a614937303030300a61492d310a\
     617356646174610a70350a636e756d70792e5f636f72652e6d756c746961727261790a5f7265636f6e73747275\
     63740a70360a28636e756d70790a6e6461727261790a70370a2849300a7470380a635f636f646563730a656e63\
     6f64650a70390a2856620a7031300a566c6174696e310a7031310a747031320a527031330a747031340a527031\
     350a2849310a2849320a4931320a747031360a636e756d70790a64747970650a7031370a285675310a7031380a\
     4930300a4930310a747031390a527032300a2849330a567c0a7032310a4e4e4e492d310a492d310a49300a7470\
     32320a624930300a67390a28565c75303030300b16212c37424d58636e79848f9aa5b0bbc6d1dce7f2fd0a7032\
     330a6731310a747032340a527032350a747032360a62735666696c656e616d65730a7032370a286c7032380a56\
     612e706e670a7032390a6156622e706e670a7033300a61732e",
    "7d710028580b00000062617463685f6c6162656c71015815000000747261696e696e672062617463682031206f\
     662035710258060000006c6162656c7371035d7104284b064b094d2c014a701101004affffffff655804000000\
     646174617105636e756d70792e5f636f72652e6d756c746961727261790a5f7265636f6e7374727563740a7106\
     28636e756d70790a6e6461727261790a7107284b00747108635f636f646563730a656e636f64650a7109285801\
     00000062710a58060000006c6174696e31710b74710c52710d74710e52710f284b01284b024b0c747110636e75\
     6d70790a64747970650a7111285802000000753171124930300a4930310a747113527114284b0358010000007c\
     71154e4e4e4affffffff4affffffff4b00747116624930300a6809285824000000000b16212c37424d58636e79\
     c284c28fc29ac2a5c2b0c2bbc386c391c39cc3a7c3b2c3bd7117680b74711852711974711a6258090000006669\
     6c656e616d6573711b5d711c285805000000612e706e67711d5805000000622e706e67711e65752e",
    "80027d710028580b00000062617463685f6c6162656c71015815000000747261696e696e672062617463682031\
     206f662035710258060000006c6162656c7371035d7104284b064b094d2c014a701101004affffffff65580400\
     0000646174617105636e756d70792e5f636f72652e6d756c746961727261790a5f7265636f6e7374727563740a\
     7106636e756d70790a6e6461727261790a71074b00857108635f636f646563730a656e636f64650a7109580100\
     000062710a58060000006c6174696e31710b86710c52710d87710e52710f284b014b024b0c867110636e756d70\
     790a64747970650a71115802000000753171128988877113527114284b0358010000007c71154e4e4e4affffff\
     ff4affffffff4b00747116628968095824000000000b16212c37424d58636e79c284c28fc29ac2a5c2b0c2bbc3\
     86c391c39cc3a7c3b2c3bd7117680b86711852711974711a62580900000066696c656e616d6573711b5d711c28\
     5805000000612e706e67711d5805000000622e706e67711e65752e",
    "80037d710028580b00000062617463685f6c6162656c71015815000000747261696e696e672062617463682031\
     206f662035710258060000006c6162656c7371035d7104284b064b094d2c014a701101004affffffff65580400\
     0000646174617105636e756d70792e5f636f72652e6d756c746961727261790a5f7265636f6e7374727563740a\
     7106636e756d70790a6e6461727261790a71074b00857108430162710987710a52710b284b014b024b0c86710c\
     636e756d70790a64747970650a710d58020000007531710e898887710f527110284b0358010000007c71114e4e\
     4e4affffffff4affffffff4b0074711262894318000b16212c37424d58636e79848f9aa5b0bbc6d1dce7f2fd71\
     1374711462580900000066696c656e616d657371155d7116285805000000612e706e6771175805000000622e70\
     6e67711865752e",
    "80049512010000000000007d94288c0b62617463685f6c6162656c948c15747261696e696e6720626174636820\
     31206f662035948c066c6162656c73945d94284b064b094d2c014a701101004affffffff658c0464617461948c\
     166e756d70792e5f636f72652e6d756c74696172726179948c0c5f7265636f6e7374727563749493948c056e75\
     6d7079948c076e6461727261799493944b0085944301629487945294284b014b024b0c869468098c0564747970\
     659493948c02753194898887945294284b038c017c944e4e4e4affffffff4affffffff4b00749462894318000b\
     16212c37424d58636e79848f9aa5b0bbc6d1dce7f2fd947494628c0966696c656e616d6573945d94288c05612e\
     706e67948c05622e706e679465752e",
    "800595fd000000000000007d94288c0b62617463685f6c6162656c948c15747261696e696e6720626174636820\
     31206f662035948c066c6162656c73945d94284b064b094d2c014a701101004affffffff658c0464617461948c\
     136e756d70792e5f636f72652e6e756d65726963948c0b5f66726f6d6275666665729493942896180000000000\
     0000000b16212c37424d58636e79848f9aa5b0bbc6d1dce7f2fd948c056e756d7079948c056474797065949394\
     8c02753194898887945294284b038c017c944e4e4e4affffffff4affffffff4b007494624b024b0c86948c0143\
     94749452948c0966696c656e616d6573945d94288c05612e706e67948c05622e706e679465752e",
];

fn from_hex(digits: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a hex digit") as u8;
    digits.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn pixels() -> Vec<u8> {
    (0..24_u8).map(|number| number.wrapping_mul(11)).collect()
}

const START: &[u8] =
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\
         \x87Rq\x09";
const DTYPE_STATE: &[u8] = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb";

/// An array as the cPickle of Python 2 writes it in protocol 2, without the final STOP.
fn array2(shape: &[u8], dtype: &[u8], order: u8, bytes: &[u8]) -> Vec<u8> {
    let type_length = [dtype.len() as u8];
    let dtype =
        [b"cnumpy\ndtype\nq\x0aU", &type_length[..], dtype, b"K\x00K\x01\x87Rq\x0b", DTYPE_STATE]
            .concat();
    let length = (bytes.len() as u32).to_le_bytes();
    [START, b"(K\x01", shape, &dtype, &[order, b'T'], &length, bytes, b"tb"].concat()
}

/// A batch as CIFAR has it: Python 2 and protocol 2, with texts for keys.
fn batch2(shape: &[u8], bytes: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\
         \x04]q\x05(K\x06K\x09\
        M,\x01Jp\x11\x01\x00J\xff\xff\xff\xffeU\x04dataq\x06";
    let tail = b"U\x09filenamesq\x0c]q\x0d(U\x05a.pngq\x0eU\x05b.pngq\x0feu.";
    [head, &array2(shape, b"u1", 0x89, bytes)[2..], tail].concat()
}

fn good_pickles() -> Vec<Vec<u8>> {
    let python3 = BYTES_KEYS.iter().chain(&TEXT_KEYS).map(|digits| from_hex(digits));
    python3.chain([batch2(b"K\x02K\x0c\x86", &pixels())]).collect()
}

fn text(text: &str) -> Value {
    Value::Bytes(text.as_bytes().to_vec())
}

#[test]
fn every_protocol_gives_the_same_batch() {
    for (index, pickle) in good_pickles().iter().enumerate() {
        let batch = read(pickle).unwrap_or_else(|fault| panic!("pickle {index}: {fault}"));
        assert_eq!(batch.get("batch_label"), Some(&text("training batch 1 of 5")));
        let labels = [6, 9, 300, 70000, -1].map(Value::Int);
        assert_eq!(batch.get("labels"), Some(&Value::List(labels.into())));
        assert_eq!(
            batch.get("data"),
            Some(&Value::Array(Array { shape: vec![2, 12], bytes: pixels() }))
        );
        assert_eq!(batch.get("filenames"), Some(&Value::List(vec![text("a.png"), text("b.png")])));
        assert_eq!(batch.get("coarse_labels"), None);
    }
}

#[test]
fn the_text_protocol_of_python_2_is_read() {
    let meta = b"(dp1\nS'num_cases_per_batch'\np2\nI10000\nsS'label_names'\np3\n(lp4\
         \nS'air\\'plane\\x41\\n'\np5\na\
        g5\nasS'seven'\nL7L\nsS'half'\nF0.5\nsV\\u00e9\xe9\nI01\ns.";
    let meta = read(meta).expect("a pickle");
    assert_eq!(meta.get("num_cases_per_batch"), Some(&Value::Int(10000)));
    assert_eq!(
        meta.get("label_names"),
        Some(&Value::List(vec![text("air'planeA\n"), text("air'planeA\n")]))
    );
    assert_eq!(meta.get("seven"), Some(&Value::Int(7)));
    assert_eq!(meta.get("half"), Some(&Value::Float(0.5)));
    assert_eq!(meta.get("\u{e9}\u{e9}"), Some(&Value::Bool(true)));
}

#[test]
fn scalars_and_stack_opcodes_are_read() {
    let pickle = b"(N\x88\x89G\x3f\xe0\0\0\0\0\0\0\x8a\0\x8a\x02\x00\xffK\x010(0((K\x021)K\x07\
         \x85l(K\x01K\x02dt.";
    let first = [
        Value::None,
        Value::Bool(true),
        Value::Bool(false),
        Value::Float(0.5),
        Value::Int(0),
        Value::Int(-256),
    ];
    let list = Value::List(vec![Value::Tuple(vec![]), Value::Tuple(vec![Value::Int(7)])]);
    let dict = Value::Dict(vec![(Value::Int(1), Value::Int(2))]);
    assert_eq!(read(pickle), Ok(Value::Tuple(first.into_iter().chain([list, dict]).collect())));
}

#[test]
fn what_is_filled_after_it_was_shared_is_full_everywhere() {
    let one = || Value::List(vec![Value::Int(1)]);
    assert_eq!(read(b"]\x94h\x00\x86h\x00K\x01a0."), Ok(Value::Tuple(vec![one(), one()])));
    let dict = || Value::Dict(vec![(Value::Int(1), Value::Int(2)), (Value::Int(3), Value::None)]);
    let filled = read(b"}r\x07\0\0\0j\x07\0\0\0\x86h\x07(K\x01K\x02K\x03Nu0.");
    assert_eq!(filled, Ok(Value::Tuple(vec![dict(), dict()])));
    assert_eq!(
        read(b"}(U\x01aK\x01U\x01aK\x02u.").expect("a pickle").get("a"),
        Some(&Value::Int(2))
    );
    assert_eq!(Value::None.get("a"), None);
}

#[test]
fn an_array_of_full_size_is_read() {
    let bytes: Vec<u8> = (0..10_000 * 3072).map(|index| (index % 251) as u8).collect();
    let batch = read(&batch2(b"M\x10'M\x00\x0c\x86", &bytes)).expect("a pickle");
    assert!(batch.get("data") == Some(&Value::Array(Array { shape: vec![10_000, 3072], bytes })));
}

#[track_caller]
fn check(pickle: &[u8], message: &str) {
    let fault = read(pickle).expect_err("a fault");
    assert_eq!(
        fault.to_string(),
        message,
        "for {}",
        pickle[..pickle.len().min(200)].escape_ascii()
    );
}

#[test]
fn what_is_no_pickle_or_cut_off_says_so() {
    check(b"", "not a pickle: it is empty");
    check(b"\x1f\x8b\x08\x00abc", "not a pickle: it begins with 0x1f8b0800");
    check(b"PK", "not a pickle: it begins with 0x504b");
    check(b"\x80\x06N.", "offset 0: expected protocol 0 to 5, got protocol 6");
    check(b"\x80", "cut off: offset 1 expects 1 more bytes, 0 are left");
    check(b"N", "cut off: offset 1 expects 1 more bytes, 0 are left");
    check(b"J\x01\x02", "cut off: offset 1 expects 4 more bytes, 2 are left");
    check(b"\x95\xff\0\0\0\0\0\0\0N.", "cut off: offset 9 expects 255 more bytes, 2 are left");
    check(
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffab",
        "cut off: offset 9 expects 18446744073709551615 more bytes, 2 are left",
    );
    check(b"T\xff\xff\xff\xffab", "cut off: offset 5 expects 4294967295 more bytes, 2 are left");
    check(b"NI12", "cut off: offset 2 begins a line that never ends");
    check(b"N.ab", "offset 2: 2 bytes follow the end of the pickle");
    check(
        &[b"S", &[b'a'; (1 << 20) + 1][..], b"\n."].concat(),
        "offset 0: more than 1048576 bytes in one line",
    );
    check(&[b'N'; (4 << 20) + 1], "offset 4194304: more than 4194304 opcodes");
}

#[test]
fn only_data_opcodes_are_accepted() {
    let refused = |at: usize, name: &str| {
        format!(
            "offset {at}: the pickle asks for `{name}`: only numpy arrays, lists, texts and \
                 numbers are read"
        )
    };
    check(b"cos\nsystem\n(S'x'\ntR.", &refused(0, "os.system"));
    check(b"\x80\x04\x8c\x02os\x8c\x06system\x93.", &refused(14, "os.system"));
    check(b"\x80\x02c__builtin__\neval\n.", &refused(2, "__builtin__.eval"));
    check(b"cnumpy.core.multiarray\nscalar\n.", &refused(0, "numpy.core.multiarray.scalar"));
    check(b"cnumpy\nndarray.x\n.", &refused(0, "numpy.ndarray.x"));
    check(b"c\xff\x1b[\n'\n.", &refused(0, r"\xff\x1b[.\'"));
    for opcode in b"ioPQ2\x81\x82\x83\x84\x8b\x8f\x90\x91\x92\x97\x98\x00\xff" {
        check(
            &[b'N', *opcode, b'.'],
            &format!("offset 1: opcode {opcode:#04x} is not one of a data file"),
        );
    }
}

#[test]
fn malformed_programs_say_what_they_lack() {
    let faults: [(&[u8], &str); 24] = [
        (b".", "offset 0: expected one value at the end, got 0 and 0 open marks"),
        (b"NN.", "offset 2: expected one value at the end, got 2 and 0 open marks"),
        (b"(N.", "offset 2: expected one value at the end, got 1 and 1 open marks"),
        (b"t", "offset 0: expected a mark on the stack, got none"),
        (b"](a.", "offset 2: expected a value on the stack, got none"),
        (b"K\x01\x86.", "offset 2: expected a value on the stack, got none"),
        (b"K\x05Na.", "offset 3: expected a list to append to, got the number 5"),
        (b")(Ne.", "offset 3: expected a list to append to, got a tuple of 0"),
        (b"]NNs.", "offset 3: expected a dict to put into, got a list"),
        (b"}(Nu.", "offset 3: expected a value for each key, got a lone key"),
        (b"h\x05.", "offset 0: expected a memo entry, got number 5, which was never put"),
        (b"Ip-1\n.", "offset 0: expected a 64-bit integer, got `p-1`"),
        (b"Np-1\n.", "offset 1: expected a memo number, got `-1`"),
        (
            b"L99999999999999999999L\n.",
            "offset 0: expected a 64-bit integer, got `99999999999999999999`",
        ),
        (b"\x8a\x09123456789.", "offset 0: expected a 64-bit integer, got one of 9 bytes"),
        (b"F1,5\n.", "offset 0: expected a number, got `1,5`"),
        (b"S'x\n.", r"offset 0: expected a quoted string, got `\'x`"),
        (b"S'\n.", r"offset 0: expected a quoted string, got `\'`"),
        (b"S'\\q'\n.", r"offset 0: expected a quoted string, got `\'\\q\'`"),
        (b"S'\\x4'\n.", r"offset 0: expected a quoted string, got `\'\\x4\'`"),
        (b"V\\u12\n.", r"offset 0: expected a string with complete escapes, got `\\u12`"),
        (
            b"V\\Uffffffff\n.",
            r"offset 0: expected a string with complete escapes, got `\\Uffffffff`",
        ),
        (b"N)R.", "offset 2: expected a function of numpy to call, got None"),
        (b"NNb.", "offset 2: expected a new numpy array to fill, got None"),
    ];
    faults.iter().for_each(|(pickle, message)| check(pickle, message));
}

#[test]
fn only_whole_arrays_of_bytes_in_c_order_are_read() {
    let two_by_twelve = b"K\x02K\x0c\x86";
    let fault = |shape: &[u8], dtype: &[u8], order: u8, end: &[u8]| {
        let pickle = [&array2(shape, dtype, order, &pixels())[..], end].concat();
        let message = read(&pickle).expect_err("a fault").to_string();
        message.split_once(": ").expect("an offset").1.to_string()
    };
    let expected = "expected the dtype `u1` (unsigned bytes), got the string `f4`";
    assert_eq!(fault(two_by_twelve, b"f4", 0x89, b"."), expected);
    assert_eq!(
        fault(two_by_twelve, b"u1", 0x88, b"."),
        "expected an array in C order, got one in Fortran order"
    );
    assert_eq!(
        fault(two_by_twelve, b"u1", b'N', b"."),
        "expected whether the array is in Fortran order, got None"
    );
    assert_eq!(
        fault(b"K\x03K\x0c\x86", b"u1", 0x89, b"."),
        "expected an array of shape [3, 12], got 24 bytes"
    );
    assert_eq!(
        fault(b"J\xff\xff\xff\xff\x85", b"u1", 0x89, b"."),
        "expected a side of an array, got the number -1"
    );
    assert_eq!(fault(b"N", b"u1", 0x89, b"."), "expected a shape, got None");
    assert_eq!(fault(b"(KKKKKKKKKKKKKKKKKKt", b"u1", 0x89, b"."), "more than 8 dimensions");
    assert_eq!(
        fault(two_by_twelve, b"u1", 0x89, b"Nb."),
        "expected a new numpy array to fill, got a numpy array"
    );
    let huge = b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87";
    let expected = "expected an array of shape [2147483647, 2147483647, 2147483647], got 24 bytes";
    assert_eq!(fault(huge, b"u1", 0x89, b"."), expected);
}

#[test]
fn calls_with_wrong_arguments_are_refused() {
    check(
        &[START, b"."].concat(),
        "offset 67: expected values only at the end, got a numpy array without its bytes",
    );
    check(
        b"cnumpy\nndarray\n)R.",
        "offset 16: expected a function of numpy to call, got a numpy name",
    );
    check(b"cnumpy\ndtype\n)R.", "offset 14: expected (dtype name, align, copy), got a tuple of 0");
    check(
        b"cnumpy\ndtype\nU\x02u1NN\x87RNb.",
        "offset 22: expected the state of a dtype, got None",
    );
    check(
        b"cnumpy\ndtype\nU\x02u1NN\x87R.",
        "offset 21: expected values only at the end, got a numpy dtype",
    );
    let order = b"cnumpy.core.numeric\n_frombuffer\n(U\x00NNU\x01FtR.";
    check(order, "offset 41: expected an array in C order, got the string `F`");
    check(
        b"c_codecs\nencode\nU\x01aU\x05utf-8\x86R.",
        "offset 27: expected the encoding `latin1`, got the string `utf-8`",
    );
    let wide = b"c_codecs\nencode\nX\x03\0\0\0\xe2\x82\xacU\x06latin1\x86R.";
    check(
        wide,
        r"offset 33: expected a string of Latin-1 characters, got the string `\xe2\x82\xac`",
    );
}

#[test]
fn depth_and_shared_values_stay_bounded() {
    check(&[b'('; 100_000], "offset 64: more than 64 nested marks");
    let deep = [&[b']'; 100_000][..], &[b'a'; 99_999], b"."].concat();
    check(&deep, "offset 199999: more than 64 nested values");
    let allowed = [&[b']'; 64][..], &[b'a'; 63], b"."].concat();
    assert!(read(&allowed).is_ok());
    check(b"]\x94h\x00a.", "offset 5: more than 64 nested values");
    check(b"]\x94(h\x00h\x00h\x00e.", "offset 10: more than 64 nested values");
    check(b"}\x94Nh\x00s.", "offset 6: more than 64 nested values");
    check(b"]\x94h\x00\x85a.", "offset 6: more than 64 nested values");

    let mut doubled = b"]K\x01a".to_vec();
    (0..40).for_each(|index| doubled.extend([0x94, b'h', index, 0x86]));
    doubled.push(b'.');
    check(&doubled, "offset 164: more than 1048906 values, counting shared ones each time");

    let page =
        [&b"](T\x10\x27\0\0"[..], &[b'x'; 10_000], b"\x94", &b"h\x00".repeat(1000), b"e."].concat();
    check(&page, "offset 12009: more than 1072596 bytes, counting shared ones each time");
    let once = [&b"c_codecs\nencode\nX\x10\x27\0\0"[..], &[b'x'; 10_000], b"U\x06latin1\x86\x94R"]
        .concat();
    let again = [&once[..], &b"c_codecs\nencode\nh\x00R".repeat(100), b"."].concat();
    check(&again, "offset 10069: more than 23866 bytes of encoded text");
}

#[test]
fn every_cut_is_a_fault() {
    for pickle in good_pickles() {
        for length in 0..pickle.len() {
            assert!(
                read(&pickle[..length]).is_err(),
                "the first {length} of {}",
                pickle.escape_ascii()
            );
        }
    }
}

fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[test]
fn no_changed_byte_makes_it_panic() {
    let (good, mut state, mut faults) = (good_pickles(), 1, 0);
    for index in 0..20_000 {
        let mut pickle = good[index % good.len()].clone();
        for _ in 0..=splitmix64(&mut state) % 4 {
            let at = splitmix64(&mut state) as usize % pickle.len();
            match splitmix64(&mut state) % 4 {
                0 => drop(pickle.remove(at)),
                1 => pickle.insert(at, b"(0ate]hbR\x86"[splitmix64(&mut state) as usize % 10]),
                _ => pickle[at] = splitmix64(&mut state) as u8,
            }
        }
        faults += usize::from(read(&pickle).is_err());
    }
    assert!((10_000..20_000).contains(&faults), "{faults} faults");
}
