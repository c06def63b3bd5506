"""Words of fourteen languages, with pairs that differ in a mark alone; written for these tests."""

WORDS = {
    "German": "könnte konnte schön schon fordern fördern Bar Bär drucken drücken zahlen zählen Straße Strasse "
    "Maße Masse würde wurde hätte hatte Mutter Mütter Ofen Öfen lösen losen Höhle Hohle Kuchen "
    "Küchen Übermut über",
    "French": "pêche péché peche sale salé mur mûr ou où tache tâche côte coté cote côté jeune jeûne forêt "
    "foret élève élevé çà ca français cœur naïve Noël garçon été ete dû du sûr sur fumé fume prés "
    "près",
    "Spanish": "año ano papá papa sí si tú tu él el más mas esta está público publico publicó inglés ingles "
    "peña pena niño moño mono cañón canon caña cana corazón pingüino ojalá bebe bebé sábana sabana",
    "Vietnamese": "ma má mà mả mã mạ ba bá bà bả bã bạ tôi tối tồi tội to tớ tờ đi di đá da đã dã cơm com cốm cộm "
    "mưa mua múa mùa người ngươi ngượi nước nuoc nuốc đẹp dep phở pho phố yêu yếu",
    "Turkish": "kız kiz ılık ilik sık sik açı acı aşı ası olur ölür oldu öldü on ön uç üç kul kül dağ dag şok "
    "sok çok cok İzmir Izmir ısı isi kın kin sinir sınır",
    "Polish": "sad sąd kat kąt laska łaska los łoś robić robic paczka pączka zadać żądać zona żona sen seń bóg "
    "bog piec pięć pieć być byc lata łata prosie prosię mąka maka kos koś",
    "Russian": "все всё небо нёбо осел осёл мой мои твой твои свой свои йод иод край краи бой бои стой стои чай "
    "чаи лёд лед мёд мед ёлка елка хороший хорошии война воина тайна тина",
    "Greek": "πότε ποτέ νόμος νομός γέρος γερός άλλα αλλά παίρνω περνώ φόρα φορά μόνος μονός όμως ώμος "
    "χαϊδεύω χαιδευω κάλος καλός πίνω πεινώ τζάμι τζαμί θόλος θολός ή η ώρα ωρα",
    "Arabic": "كَتَبَ كُتِبَ كتب عَلَم عِلم علم مُدَرِّس مدرس أب آب اب سؤال سوال قرآن قران إن أن ان مَلِك "
    "مَلَك ملك شَعر شِعر شعر حُب حَب حب بِر بَر بر دين دَين كريم كرّم مكتبة مكتبه مدرسة مدرسه",
    "Hebrew": "שָׁלוֹם שלום סֵפֶר סַפָּר ספר שׁוֹר שׂוֹר שור דָּוִד דוד בֹּקֶר בָּקָר בקר חָלָב חלב עִם עַם עם "
    "מִן מַן מן כֹּל כל בַּת בת טוב אהבה אַהֲבָה תודה תּוֹדָה",
    "Hindi": "कम काम कि की कुल कूल दिन दीन पिता पीता सुना सूना मेल मैल और ओर बेल बैल चिंता चिता हंस हँस सड़क "
    "सडक पढ़ना पढना ज़रा जरा फ़न फन राज राज़ मूल मल में मे नहीं नही क्या कया",
    "Thai": "ไกล ใกล้ ไก ไก่ ไข ไข้ ไข่ ขาว ข่าว ข้าว มา ม้า หมา ปา ป่า ป้า ป๋า เสือ เสื้อ เสื่อ ใหม่ ไหม "
    "ไหม้ ไม่ คา ค่า ค้า ฆ่า ขา ข่า ข้า น้ำ นำ ทำ ธรรม",
    "Korean": "사랑 사람 고양이 강아지 학교 학생 한국 한글 영화 정말 좋아요 좋다 재미있다 재미없다 최고 최악 "
    "배우 연기 음악 감동 지루하다 눈 는 은 을 달 딸 탈 불 뿔 풀 자다 짜다 차다 방 빵 팡",
    "Japanese": "はし ばし ぱし かき がき ひん びん ぴん はは ばば ぱぱ ハハ ババ パパ かく がく さる ざる とく "
    "どく 映画 最高 最悪 面白い つまらない 音楽 感動 退屈 学校 学生 今日 今年 ヴァイオリン カメラ "
    "ガメラ ほん ぼん ぽん",
}
