//! Datagrams by the batch: up to 64 for one system call each way.
//!
//! This is the one place of Nuage with unsafe code: `recvmmsg` and `sendmmsg` have no safe form that
//! keeps its buffers from one call to the next. Pointers are made for one call, from buffers that outlive
//! it, and every length the kernel returns is checked before it is used.
#![expect(
    unsafe_code,
    reason = "recvmmsg, sendmmsg and their control messages are foreign calls over raw pointers"
)]

use std::{
    io, mem,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd,
    ptr,
};

use libc::{
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, IPPROTO_IP, IPPROTO_IPV6, c_int,
    c_void, in_pktinfo, in6_pktinfo, iovec, mmsghdr, sockaddr_in, sockaddr_in6, sockaddr_storage,
    socklen_t,
};

/// Datagrams in one batch.
pub(crate) const DATAGRAMS: usize = 64;
/// Octets of a question that are read; a longer datagram is cut, and then malformed.
const QUESTION_OCTETS: usize = 2_048;
/// Octets of an answer.
pub(crate) const ANSWER_OCTETS: usize = 1_232;
/// Room for one packet information message, of either family.
const CONTROL_OCTETS: usize = 64;

type Control = [u64; CONTROL_OCTETS / 8];

/// Buffers of one worker.
pub(crate) struct Batch {
    questions: Box<[[u8; QUESTION_OCTETS]]>,
    answers: Box<[[u8; ANSWER_OCTETS]]>,
    /// How long each answer is, and which question it is to.
    lengths: Box<[usize]>,
    asked: Box<[usize]>,
    sources: Box<[sockaddr_storage]>,
    controls: Box<[Control]>,
    // What the kernel reads: set before each call, and good for that call.
    received: Box<[mmsghdr]>,
    sent: Box<[mmsghdr]>,
    question_vectors: Box<[iovec]>,
    answer_vectors: Box<[iovec]>,
    /// Whether answers must say which address they leave from.
    wildcard: bool,
}

impl Batch {
    /// Buffers for a socket, which is told to say which address was asked when it is bound to all of
    /// them.
    ///
    /// # Errors
    /// The socket has no address, or can't say.
    pub(crate) fn new(socket: &UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        let wildcard = local.ip().is_unspecified();
        if wildcard {
            tell_destination(socket, local.is_ipv6())?;
        }
        // SAFETY: an address of zeros is one of no family, a header of zeros points at nothing.
        let (address, header): (sockaddr_storage, mmsghdr) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let vector = iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        };
        Ok(Self {
            questions: vec![[0; QUESTION_OCTETS]; DATAGRAMS].into(),
            answers: vec![[0; ANSWER_OCTETS]; DATAGRAMS].into(),
            lengths: vec![0; DATAGRAMS].into(),
            asked: vec![0; DATAGRAMS].into(),
            sources: vec![address; DATAGRAMS].into(),
            controls: vec![Control::default(); DATAGRAMS].into(),
            received: vec![header; DATAGRAMS].into(),
            sent: vec![header; DATAGRAMS].into(),
            question_vectors: vec![vector; DATAGRAMS].into(),
            answer_vectors: vec![vector; DATAGRAMS].into(),
            wildcard,
        })
    }

    /// Waits for at least one datagram, and takes those that are there: how many.
    ///
    /// # Errors
    /// As `recvmmsg(2)`.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let buffers = self.questions.iter_mut().zip(&mut self.question_vectors);
        let sources = self.sources.iter_mut().zip(&mut self.controls);
        for ((header, (question, vector)), (source, control)) in
            self.received.iter_mut().zip(buffers).zip(sources)
        {
            *vector = iovec {
                iov_base: question.as_mut_ptr().cast(),
                iov_len: QUESTION_OCTETS,
            };
            let header = &mut header.msg_hdr;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_name = ptr::from_mut(source).cast();
            header.msg_namelen = size::<sockaddr_storage>();
            if self.wildcard {
                header.msg_control = control.as_mut_ptr().cast();
                header.msg_controllen = CONTROL_OCTETS;
            }
        }
        let most = u32::try_from(self.received.len()).unwrap_or(0);
        // SAFETY: the headers, as many as is said, point at buffers of this value, of the lengths they
        // say; nothing else touches those before the call returns.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.received.as_mut_ptr(),
                most,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Lets `answer` write an answer to each of the first `count` datagrams received, and sends those
    /// of more than zero octets to where their questions came from.
    pub(crate) fn answer(
        &mut self,
        socket: &UdpSocket,
        count: usize,
        mut answer: impl FnMut(&[u8], SocketAddr, &mut [u8]) -> usize,
    ) {
        let mut filled = 0;
        for index in 0..count.min(DATAGRAMS) {
            let header = &self.received[index];
            let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            let length = usize::try_from(header.msg_len)
                .unwrap_or(0)
                .min(QUESTION_OCTETS);
            let Some(source) = source(&self.sources[index]).filter(|_| whole) else {
                continue;
            };
            let question = &self.questions[index][..length];
            let written = answer(question, source, &mut self.answers[filled]);
            if written > 0 {
                self.lengths[filled] = written.min(ANSWER_OCTETS);
                self.asked[filled] = index;
                filled += 1;
            }
        }
        self.send(socket, filled);
    }

    /// Sends the first `count` answers.
    fn send(&mut self, socket: &UdpSocket, count: usize) {
        let buffers = self.answers.iter_mut().zip(&mut self.answer_vectors);
        let of = self.lengths.iter().zip(&self.asked);
        for ((header, (answer, vector)), (length, asked)) in
            self.sent.iter_mut().take(count).zip(buffers).zip(of)
        {
            *vector = iovec {
                iov_base: answer.as_mut_ptr().cast(),
                iov_len: *length,
            };
            let question = &self.received[*asked].msg_hdr;
            let header = &mut header.msg_hdr;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_name = ptr::from_mut(&mut self.sources[*asked]).cast();
            header.msg_namelen = question.msg_namelen;
            if self.wildcard {
                header.msg_control = self.controls[*asked].as_mut_ptr().cast();
                header.msg_controllen = question.msg_controllen.min(CONTROL_OCTETS);
                leave_from_there(header);
            }
        }
        let mut rest = self.sent.get_mut(..count).unwrap_or_default();
        while !rest.is_empty() {
            let wanted = u32::try_from(rest.len()).unwrap_or(0);
            // SAFETY: the headers point at buffers of this value, and `rest` says how many they are.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), wanted, 0) };
            // An error is the first datagram's: it is given up, as the network would.
            let done = usize::try_from(sent).unwrap_or(0).max(1).min(rest.len());
            rest = &mut rest[done..];
        }
    }
}

/// Asks the kernel to say which of our addresses a datagram came to.
fn tell_destination(socket: &UdpSocket, ipv6: bool) -> io::Result<()> {
    let (level, option) = if ipv6 {
        (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        (IPPROTO_IP, libc::IP_PKTINFO)
    };
    let on: c_int = 1;
    // SAFETY: the option is an integer, and the pointer and length are of one.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&on).cast::<c_void>(),
            size::<c_int>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Turns what was said of a datagram's destination into where its answer leaves from: the address
/// stays, the interface is for the routes to choose.
fn leave_from_there(reply: &mut libc::msghdr) {
    // SAFETY: control and its length are what recvmmsg wrote into a buffer of ours, aligned to eight
    // octets; the macros stay within that length, and data of these types is written only where the
    // kernel put a message of the same type.
    unsafe {
        let mut message = CMSG_FIRSTHDR(reply);
        while !message.is_null() {
            let whole = |data: usize| (*message).cmsg_len >= size_of::<libc::cmsghdr>() + data;
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (IPPROTO_IP, libc::IP_PKTINFO) if whole(size_of::<in_pktinfo>()) => {
                    let info = CMSG_DATA(message).cast::<in_pktinfo>();
                    (*info).ipi_ifindex = 0;
                }
                (IPPROTO_IPV6, libc::IPV6_PKTINFO) if whole(size_of::<in6_pktinfo>()) => {
                    let info = CMSG_DATA(message).cast::<in6_pktinfo>();
                    let address = Ipv6Addr::from((*info).ipi6_addr.s6_addr);
                    if !address.is_unicast_link_local() {
                        (*info).ipi6_ifindex = 0;
                    }
                }
                _ => {}
            }
            message = CMSG_NXTHDR(reply, message);
        }
    }
}

/// Where a datagram came from.
fn source(address: &sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(address.ss_family) {
        AF_INET => {
            // SAFETY: the family says which address it is, and the storage is large enough for any.
            let v4 = unsafe { &*ptr::from_ref(address).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        AF_INET6 => {
            // SAFETY: likewise.
            let v6 = unsafe { &*ptr::from_ref(address).cast::<sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn size<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
