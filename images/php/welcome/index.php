<?php
// Shown at / while the site's folder has no index file. Prints no value of the environment,
// only which of the database's variables are there.

/** For HTML text and attributes. */
function e(string $text): string
{
    return htmlspecialchars($text, ENT_QUOTES | ENT_SUBSTITUTE | ENT_HTML5, 'UTF-8');
}

/** The visitor's choice (?lang=), else what the browser prefers, else English. */
function language(): string
{
    $asked = $_GET['lang'] ?? null;
    if ($asked === 'fr' || $asked === 'en') {
        return $asked;
    }
    $best = ['fr' => 0.0, 'en' => 0.0];
    $accept = substr($_SERVER['HTTP_ACCEPT_LANGUAGE'] ?? '', 0, 500);
    preg_match_all('/(fr|en)(?:-[a-z0-9-]+)?\s*(?:;\s*q\s*=\s*([01](?:\.\d+)?))?\s*(?:,|$)/i', $accept, $ranges, PREG_SET_ORDER);
    foreach ($ranges as $range) {
        $tag = strtolower($range[1]);
        $best[$tag] = max($best[$tag], isset($range[2]) ? (float) $range[2] : 1.0);
    }
    return $best['fr'] > $best['en'] ? 'fr' : 'en';
}

/** Which of these variables the container has, by name. */
function present(string ...$names): array
{
    return array_filter($names, fn ($name) => (string) getenv($name) !== '');
}

$lang = language();
$site = $_SERVER['HTTP_HOST'] ?? '';
if (!preg_match('/^[a-z0-9.-]{1,253}(:\d{1,5})?$|^\[[0-9a-f:.]{2,45}\](:\d{1,5})?$/i', $site)) {
    $site = '';
}
$https = ($_SERVER['HTTPS'] ?? '') === 'on';
$variables = present('DATABASE_URL', 'DB_HOST', 'DB_PORT', 'DB_NAME', 'DB_USER', 'DB_PASSWORD');
$database = in_array('DATABASE_URL', $variables) || in_array('DB_HOST', $variables);
$in_parts = in_array('DB_HOST', $variables) && in_array('DB_NAME', $variables);
$extensions = array_filter(
    ['curl', 'fileinfo', 'gd', 'intl', 'mbstring', 'mysqli', 'pdo_mysql', 'pdo_sqlite', 'sqlite3', 'xml', 'zip', 'Zend OPcache'],
    'extension_loaded',
);

$texts = [
    'fr' => [
        'title' => 'Ce site est à vous',
        'ready' => 'En service',
        'lead' => 'Tout fonctionne : il ne manque plus que vos pages. Cet accueil s’efface de lui-même dès que vous en déposez une.',
        'one' => 'Trouvez le dossier du site',
        'one_text' => 'La commande <code>nuage site</code> le montre. Si vous ne l’avez pas, demandez-le à la personne qui gère les sites de votre établissement.',
        'two' => 'Déposez-y votre page',
        'two_text' => 'Un fichier nommé <code>index.php</code> ou <code>index.html</code>, en minuscules, à la racine du dossier. Par exemple, dans <code>index.php</code> :',
        'three' => 'Rechargez cette page',
        'three_text' => 'Votre page a pris la place. Images, feuilles de style et autres pages se rangent à côté d’elle.',
        'hello' => 'Bonjour ! Nous sommes le',
        'database' => 'Une base de données vous attend',
        'database_text' => 'Ses accès sont déjà dans l’environnement du site : lisez-les avec <code>getenv()</code>, sans jamais recopier de mot de passe dans vos fichiers.',
        'variables' => 'Variables présentes',
        'no_database' => 'Besoin d’une base de données ?',
        'no_database_text' => 'SQLite est prêt sans rien demander : <code>new PDO(\'sqlite:/var/www/html/.donnees.sqlite\')</code>. Le point au début du nom le garde hors de portée des visiteurs. Pour MySQL ou MariaDB, demandez à la personne qui gère les sites.',
        'errors' => 'Une page blanche, une erreur 500 ?',
        'errors_text' => 'Le détail est dans le journal du site. Pour le voir aussi dans la page pendant que vous écrivez, mettez cette ligne dans un fichier <code>.user.ini</code>, et retirez-la ensuite :',
        'server' => 'Ce que le serveur vous offre',
        'connection' => 'Connexion',
        'secure' => 'chiffrée (HTTPS)',
        'plain' => 'non chiffrée (HTTP)',
        'memory' => 'Mémoire d’une page',
        'upload' => 'Fichier envoyé',
        'time' => 'Temps de calcul',
        'upto' => 'jusqu’à %s',
        'units' => ['M' => 'Mo', 'G' => 'Go', 'K' => 'ko'],
        'rewriting' => '<code>.htaccess</code> est lu, réécriture d’adresses comprise',
        'foot' => 'Servi par Nuage.',
    ],
    'en' => [
        'title' => 'This site is yours',
        'ready' => 'Up and running',
        'lead' => 'Everything works; only your pages are missing. This welcome goes away by itself as soon as you add one.',
        'one' => 'Find the site’s folder',
        'one_text' => 'The command <code>nuage site</code> shows where it is. If you don’t have it, ask the person who looks after your school’s sites.',
        'two' => 'Put your page in it',
        'two_text' => 'A file named <code>index.php</code> or <code>index.html</code>, in lower case, at the top of the folder. For example, in <code>index.php</code>:',
        'three' => 'Reload this page',
        'three_text' => 'Yours has taken its place. Pictures, style sheets and other pages go next to it.',
        'hello' => 'Hello! Today is',
        'database' => 'A database is waiting for you',
        'database_text' => 'Its credentials are already in the site’s environment: read them with <code>getenv()</code>, and never copy a password into your files.',
        'variables' => 'Variables present',
        'no_database' => 'Need a database?',
        'no_database_text' => 'SQLite is ready, nothing to ask for: <code>new PDO(\'sqlite:/var/www/html/.data.sqlite\')</code>. The dot in front of the name keeps it out of visitors’ reach. For MySQL or MariaDB, ask the person who looks after the sites.',
        'errors' => 'A blank page, an error 500?',
        'errors_text' => 'The reason is in the site’s log. To see it in the page as well while you write, put this line in a file named <code>.user.ini</code>, and take it out afterwards:',
        'server' => 'What the server offers',
        'connection' => 'Connection',
        'secure' => 'encrypted (HTTPS)',
        'plain' => 'not encrypted (HTTP)',
        'memory' => 'Memory for a page',
        'upload' => 'Uploaded file',
        'time' => 'Computing time',
        'upto' => 'up to %s',
        'units' => ['M' => 'MB', 'G' => 'GB', 'K' => 'kB'],
        'rewriting' => '<code>.htaccess</code> is read, address rewriting included',
        'foot' => 'Served by Nuage.',
    ],
];
$t = $texts[$lang];

/** "64M" of php.ini as the language writes it. */
$size = function (string $setting) use ($t): string {
    $value = (string) ini_get($setting);
    return sprintf($t['upto'], (int) $value . "\u{a0}" . ($t['units'][strtoupper(substr($value, -1))] ?? ''));
};

$sample = "<!doctype html>\n<h1>" . $t['hello'] . " <?= date('d/m/Y') ?></h1>";
$connect = $in_parts
    ? "\$db = new PDO(\n    'mysql:host=' . getenv('DB_HOST') . ';dbname=' . getenv('DB_NAME') . ';charset=utf8mb4',\n    getenv('DB_USER'),\n    getenv('DB_PASSWORD'),\n);"
    : "\$url = parse_url(getenv('DATABASE_URL'));\n\$db = new PDO(\n    \"mysql:host=\$url[host];dbname=\" . ltrim(\$url['path'], '/') . ';charset=utf8mb4',\n    rawurldecode(\$url['user']),\n    rawurldecode(\$url['pass']),\n);";

header('Content-Type: text/html; charset=UTF-8');
header('Content-Language: ' . $lang);
header('Vary: Accept-Language');
header('Cache-Control: no-store');
header('X-Robots-Tag: noindex');
header("Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'");
?>
<!doctype html>
<html lang="<?= $lang ?>">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title><?= e($t['title']) ?><?= $site === '' ? '' : ' · ' . e($site) ?></title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Cpath fill='%232f6fde' d='M25 27H8A7 7 0 0 1 7 13a9 9 0 0 1 17-2 8 8 0 0 1 1 16z'/%3E%3C/svg%3E">
<style>
:root {
    --ink: #17233a; --soft: #566179; --paper: #fff; --ground: #f3f6fb; --line: #dfe5ef;
    --blue: #2459c4; --code: #eef2f9; --green: #12724a; --green-ground: #e2f5ec;
    --sky: linear-gradient(165deg, #1d4fb8 0%, #3f86e8 55%, #8fc4f7 100%);
}
@media (prefers-color-scheme: dark) {
    :root {
        --ink: #e7ecf6; --soft: #a2aec4; --paper: #161f31; --ground: #0d1422; --line: #29344b;
        --blue: #8db6ff; --code: #0f1829; --green: #7fdcb0; --green-ground: #12352a;
        --sky: linear-gradient(165deg, #0b1b3f 0%, #1c418c 60%, #3a6db6 100%);
    }
}
* { box-sizing: border-box; }
body {
    margin: 0; background: var(--ground); color: var(--ink);
    font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
.wrap { max-width: 60rem; margin: 0 auto; padding: 0 1.5rem; }
header { background: var(--sky); color: #fff; overflow: hidden; position: relative; padding: 1.25rem 0 6.5rem; }
header .clouds { position: absolute; inset: auto 0 -1px 0; width: 100%; height: 5.5rem; fill: var(--ground); }
header .back { opacity: .25; }
.bar { display: flex; justify-content: space-between; align-items: center; gap: 1rem; }
.name { font-weight: 700; letter-spacing: .01em; display: flex; gap: .55rem; align-items: center; }
.name svg { width: 1.7rem; height: 1.7rem; fill: #fff; }
nav { display: flex; background: rgb(255 255 255 / .16); border-radius: 99px; padding: .2rem; font-size: .88rem; }
nav a { color: #fff; text-decoration: none; padding: .15rem .85rem; border-radius: 99px; }
nav a[aria-current] { background: #fff; color: #1d4fb8; font-weight: 600; }
nav a:focus-visible { outline: 2px solid #fff; outline-offset: 2px; }
h1 { font-size: clamp(2.1rem, 6vw, 3.3rem); line-height: 1.1; letter-spacing: -.02em; margin: .9rem 0 .8rem; }
header .lead { font-size: 1.15rem; max-width: 38rem; color: #fff; }
.ready { display: inline-flex; gap: .5rem; align-items: center; margin-top: 3rem; font-size: .9rem; max-width: 100%; }
.ready b { font-weight: 600; overflow-wrap: anywhere; }
.ready::before { content: ""; width: .6rem; height: .6rem; flex: none; border-radius: 50%; background: #7ff0b4; box-shadow: 0 0 0 .25rem rgb(127 240 180 / .3); }
main { margin-top: -1.5rem; position: relative; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 1rem; padding: 1.5rem 1.6rem; box-shadow: 0 1px 2px rgb(20 40 80 / .05), 0 8px 24px -12px rgb(20 40 80 / .15); }
ol { list-style: none; counter-reset: step; margin: 0; padding: 0; }
ol > li { counter-increment: step; position: relative; padding: 0 0 1.6rem 3.4rem; }
ol > li:last-child { padding-bottom: 0; }
ol > li::before {
    content: counter(step); position: absolute; left: 0; top: 0; width: 2.2rem; height: 2.2rem; border-radius: 50%;
    display: grid; place-items: center; font-weight: 700; background: var(--code); color: var(--blue);
}
ol > li:not(:last-child)::after { content: ""; position: absolute; left: 1.05rem; top: 2.6rem; bottom: .4rem; width: 2px; background: var(--line); }
h2 { font-size: 1.12rem; line-height: 1.35; margin: 0 0 .35rem; }
ol h2 { padding-top: .3rem; }
p { margin: 0; color: var(--soft); }
code, pre { font: .88em/1.55 ui-monospace, "SF Mono", "Cascadia Mono", Consolas, "DejaVu Sans Mono", monospace; }
code { background: var(--code); color: var(--ink); border-radius: .35rem; padding: .12em .4em; overflow-wrap: anywhere; }
pre { background: var(--code); color: var(--ink); border-radius: .6rem; padding: .8rem 1rem; margin: .8rem 0 0; overflow-x: auto; }
pre code { padding: 0; background: none; overflow-wrap: normal; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.25rem; margin: 1.25rem 0; }
.two > *, ol > li > * { min-width: 0; }
.full { grid-column: 1 / -1; }
.tag { display: inline-block; margin: .8rem .3rem 0 0; padding: .1rem .6rem; border-radius: 99px; font-size: .84rem; background: var(--code); color: var(--soft); }
.tag.there { background: var(--green-ground); color: var(--green); font-family: ui-monospace, Consolas, "DejaVu Sans Mono", monospace; font-size: .8rem; }
.tags .tag { margin-top: .4rem; }
.small { font-size: .84rem; margin-top: .9rem; }
.small + .tag, .small ~ .tag { margin-top: .35rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .9rem 1.5rem; margin: .8rem 0 1rem; }
dt { font-size: .84rem; color: var(--soft); }
dd { margin: 0; font-weight: 600; }
footer { padding: .5rem 0 2.5rem; font-size: .88rem; text-align: center; color: var(--soft); }
</style>
</head>
<body>
<header>
    <svg class="clouds back" viewBox="0 0 1200 120" preserveAspectRatio="none" aria-hidden="true"><path d="M0 120V70c60-40 150-40 210 0 40-60 170-70 230-5 70-55 190-50 240 10 60-60 180-60 240 0 60-45 200-45 280-5v50z"/></svg>
    <svg class="clouds" viewBox="0 0 1200 120" preserveAspectRatio="none" aria-hidden="true"><path d="M0 120V98c50-28 120-28 170 0 50-50 150-52 210-6 55-40 160-42 215 4 60-44 170-42 220 2 60-40 150-40 205 0 50-25 130-25 180-2v24z"/></svg>
    <div class="wrap">
        <div class="bar">
            <span class="name"><svg viewBox="0 0 32 32" aria-hidden="true"><path d="M25 27H8A7 7 0 0 1 7 13a9 9 0 0 1 17-2 8 8 0 0 1 1 16z"/></svg>Nuage</span>
            <nav aria-label="Langue, language">
<?php foreach (['fr' => 'Français', 'en' => 'English'] as $code => $label): ?>
                <a href="?lang=<?= $code ?>" hreflang="<?= $code ?>" lang="<?= $code ?>"<?= $code === $lang ? ' aria-current="true"' : '' ?>><?= $label ?></a>
<?php endforeach ?>
            </nav>
        </div>
        <div class="ready"><?= e($t['ready']) ?><?= $site === '' ? '' : ' · <b>' . e($site) . '</b>' ?></div>
        <h1><?= e($t['title']) ?></h1>
        <p class="lead"><?= e($t['lead']) ?></p>
    </div>
</header>
<main class="wrap">
    <ol class="card">
        <li><h2><?= e($t['one']) ?></h2><p><?= $t['one_text'] ?></p></li>
        <li><h2><?= e($t['two']) ?></h2><p><?= $t['two_text'] ?></p><pre><code><?= e($sample) ?></code></pre></li>
        <li><h2><?= e($t['three']) ?></h2><p><?= e($t['three_text']) ?></p></li>
    </ol>
    <div class="two">
<?php if ($database): ?>
        <section class="card full">
            <h2><?= e($t['database']) ?></h2>
            <p><?= $t['database_text'] ?></p>
            <p class="small"><?= e($t['variables']) ?></p>
<?php foreach ($variables as $name): ?>
            <span class="tag there"><?= e($name) ?></span>
<?php endforeach ?>
            <pre><code><?= e($connect) ?></code></pre>
        </section>
<?php else: ?>
        <section class="card">
            <h2><?= e($t['no_database']) ?></h2>
            <p><?= $t['no_database_text'] ?></p>
        </section>
<?php endif ?>
        <section class="card<?= $database ? ' full' : '' ?>">
            <h2><?= e($t['errors']) ?></h2>
            <p><?= $t['errors_text'] ?></p>
            <pre><code>display_errors = On</code></pre>
        </section>
        <section class="card full">
            <h2><?= e($t['server']) ?></h2>
            <dl>
                <div><dt>PHP</dt><dd><?= e(PHP_VERSION) ?></dd></div>
                <div><dt><?= e($t['connection']) ?></dt><dd><?= e($https ? $t['secure'] : $t['plain']) ?></dd></div>
                <div><dt><?= e($t['memory']) ?></dt><dd><?= e($size('memory_limit')) ?></dd></div>
                <div><dt><?= e($t['upload']) ?></dt><dd><?= e($size('upload_max_filesize')) ?></dd></div>
                <div><dt><?= e($t['time']) ?></dt><dd><?= e(sprintf($t['upto'], (int) ini_get('max_execution_time') . "\u{a0}s")) ?></dd></div>
            </dl>
            <div class="tags">
<?php foreach ($extensions as $name): ?>
                <span class="tag"><?= e($name) ?></span>
<?php endforeach ?>
            </div>
            <p class="small"><?= $t['rewriting'] ?></p>
        </section>
    </div>
</main>
<footer class="wrap"><?= e($t['foot']) ?></footer>
</body>
</html>
